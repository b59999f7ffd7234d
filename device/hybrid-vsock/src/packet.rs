//! Packets (VIRTIO 1.2, 5.10.6).

/// The length of a packet's header: `struct virtio_vsock_hdr`.
pub const HEADER: usize = 44;
/// The most data that a packet may have, in bytes: what Linux sends at most.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// The type of a stream's packets.
pub const TYPE_STREAM: u16 = 1;

/// Flags of [`Op::Shutdown`] (5.10.6.5).
pub mod shutdown {
    /// The sender will receive no more.
    pub const RECEIVE: u32 = 1;
    /// The sender will send no more.
    pub const SEND: u32 = 2;
    /// Both.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// What a packet is for (5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Make a connection.
    Request = 1,
    /// It is made.
    Response = 2,
    /// There is none, or no more.
    Rst = 3,
    /// The sender will send or receive no more.
    Shutdown = 4,
    /// Data.
    Rw = 5,
    /// How much room the sender has.
    CreditUpdate = 6,
    /// Asks for that.
    CreditRequest = 7,
}

impl Op {
    /// The operation with this number.
    pub fn from_number(number: u16) -> Option<Self> {
        [
            Self::Request,
            Self::Response,
            Self::Rst,
            Self::Shutdown,
            Self::Rw,
            Self::CreditUpdate,
            Self::CreditRequest,
        ]
        .into_iter()
        .find(|&op| op as u16 == number)
    }
}

/// `struct virtio_vsock_hdr` (5.10.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Who sends.
    pub src_cid: u64,
    /// To whom.
    pub dst_cid: u64,
    /// From which port.
    pub src_port: u32,
    /// To which port.
    pub dst_port: u32,
    /// How many bytes of data follow.
    pub len: u32,
    /// Of what type the connection is.
    pub kind: u16,
    /// The number of an [`Op`].
    pub op: u16,
    /// What else the operation has to say.
    pub flags: u32,
    /// How many bytes the sender has room for in all (5.10.6.3).
    pub buf_alloc: u32,
    /// How many bytes the sender has taken out of that room since the beginning, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// From its bytes.
    pub fn read(bytes: &[u8; HEADER]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// As bytes.
    pub fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }
}

/// Takes the next bytes; the fields above are as long as a header.
fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let Some((first, rest)) = bytes.split_first_chunk() else { return [0; N] };
    *bytes = rest;
    *first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_laid_out_as_the_standard_says() {
        let header = Header {
            src_cid: 0x0807_0605_0403_0201,
            dst_cid: 0x100f_0e0d_0c0b_0a09,
            src_port: 0x1413_1211,
            dst_port: 0x1817_1615,
            len: 0x1c1b_1a19,
            kind: 0x1e1d,
            op: 0x201f,
            flags: 0x2423_2221,
            buf_alloc: 0x2827_2625,
            fwd_cnt: 0x2c2b_2a29,
        };
        let bytes: [u8; HEADER] = std::array::from_fn(|at| at as u8 + 1);
        assert_eq!(header.bytes(), bytes);
        assert_eq!(Header::read(&bytes), header);
    }

    #[test]
    fn operations_have_their_numbers() {
        assert_eq!(Op::from_number(5), Some(Op::Rw));
        assert_eq!((Op::from_number(0), Op::from_number(8)), (None, None));
    }
}
