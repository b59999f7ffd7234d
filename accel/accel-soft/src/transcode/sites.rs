//! Where translated code accesses mirrored memory, and what is to be known of the guest there.
//!
//! Such an access may fault on the host. Then the guest's state before its instruction must be
//! told: all of its registers are in their places, and this says where its status flags are.

use super::translate::Status;

/// An instruction of the host that accesses mirrored memory for one of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Where it is: in the block first, then in code memory.
    pub host: u32,
    /// The offset of the guest's instruction in its page.
    pub at: u16,
    pub status: Status,
    /// The status flags are in the context, because RAX is used for something else.
    pub is_spilled: bool,
    /// If not 0, they were given up, and are those that the instruction so many bytes before left.
    pub back: u8,
    /// What is to be added to the register that holds RSP, in words: -7 to 7.
    pub stack: i8,
    /// It is no access of the guest's, but that by which a block learns that the processor has something else
    /// to do ([`Context::poll`](super::context::Context::poll)).
    pub is_poll: bool,
}

/// All sites in code memory, ordered.
pub struct Sites(Vec<Packed>);

/// A site in eight bytes: its place, and in the other word `at` in bits 11:0, `is_poll` in bit 12, status in
/// bits 14:13, `is_spilled` in bit 15, `stack` in bits 23:16, `back` in bits 31:24.
#[derive(Clone, Copy)]
struct Packed {
    host: u32,
    rest: u32,
}

/// More are never kept.
const MAX_SITES: usize = 9 << 16;
/// A block has fewer.
const MOST: usize = 1024;

const STATUS: [Status; 4] = [Status::Kept, Status::Host, Status::Both, Status::Lost];

impl Sites {
    /// None yet. They are never moved.
    pub fn new() -> Self {
        Self(Vec::with_capacity(MAX_SITES))
    }

    /// Adds those of a block at `base`, which is behind all others.
    pub fn add(&mut self, base: u32, sites: &[Site]) {
        self.0.extend(sites.iter().map(|site| {
            let status = STATUS.iter().position(|&s| s == site.status).unwrap_or(0) as u32;
            Packed {
                host: base + site.host,
                rest: u32::from(site.at & 0xfff)
                    | u32::from(site.is_poll) << 12
                    | status << 13
                    | u32::from(site.is_spilled) << 15
                    | u32::from(site.stack as u8) << 16
                    | u32::from(site.back) << 24,
            }
        }));
    }

    /// That at an offset in code memory.
    pub fn find(&self, host: u32) -> Option<Site> {
        let index = self.0.binary_search_by_key(&host, |site| site.host).ok()?;
        let Packed { host, rest } = self.0[index];
        Some(Site {
            host,
            at: (rest & 0xfff) as u16,
            status: STATUS[(rest >> 13 & 3) as usize],
            is_spilled: rest & 1 << 15 != 0,
            back: (rest >> 24) as u8,
            stack: (rest >> 16) as i8,
            is_poll: rest & 1 << 12 != 0,
        })
    }

    /// Whether those of another block may be added.
    pub fn have_room(&self) -> bool {
        self.0.len() + MOST < MAX_SITES
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_survive_packing() {
        let mut all = Sites::new();
        let site = |host, status, is_spilled, back, stack| Site {
            host,
            at: 4095,
            status,
            is_spilled,
            back,
            stack,
            is_poll: host == 7,
        };
        let sites = [
            site(0, Status::Kept, true, 0, 7),
            site(7, Status::Host, false, 0, 0),
            site(9, Status::Both, false, 0, -1),
            site(10, Status::Lost, false, 255, -7),
        ];
        all.add(1000, &sites);
        for site in sites {
            assert_eq!(all.find(1000 + site.host), Some(Site { host: 1000 + site.host, ..site }));
        }
        assert_eq!(all.find(1001), None);
    }
}
