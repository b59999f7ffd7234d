//! What a guest did, and what it should have done.

use std::fmt;

/// What a generic handler saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub vector: u64,
    pub code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub cr2: u64,
    /// For #DB only.
    pub dr6: u64,
}

impl Record {
    pub const LEN: usize = 72;

    pub fn from_words(words: [u64; 9]) -> Self {
        let [vector, code, rip, cs, rflags, rsp, ss, cr2, dr6] = words;
        Self { vector, code, rip, cs, rflags, rsp, ss, cr2, dr6 }
    }
}

/// Something that the guest did and the test bus saw.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It wrote a value to the debug port.
    Out(u32),
    /// A generic handler was entered.
    Fault(Record),
    /// A store to the test device: offset and value.
    Store(u64, u64),
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Out(value) => write!(f, "out {value:#x}"),
            Self::Store(offset, value) => write!(f, "store {value:#x} at {offset:#x}"),
            Self::Fault(r) => {
                write!(f, "{}({:#x}) at {:#x}", vector_name(r.vector), r.code, r.rip)?;
                write!(f, " cs={:#x} rflags={:#x}", r.cs, r.rflags)?;
                write!(f, " rsp={:#x} ss={:#x} cr2={:#x}", r.rsp, r.ss, r.cr2)?;
                if r.vector == 1 { write!(f, " dr6={:#x}", r.dr6) } else { Ok(()) }
            }
        }
    }
}

pub fn vector_name(vector: u64) -> String {
    let names = [
        "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS", "#NP", "#SS",
        "#GP", "#PF", "15", "#MF", "#AC", "#MC", "#XM",
    ];
    match names.get(vector as usize) {
        Some(name) => (*name).to_owned(),
        None => format!("interrupt {vector:#x}"),
    }
}

/// What is expected to happen next.
#[derive(Clone)]
pub enum Want {
    Out(u32),
    Fault(FaultWant),
    Store(u64, u64),
}

/// An exception or interrupt; only what is given is compared.
#[derive(Clone, Default)]
pub struct FaultWant {
    vector: u8,
    code: Option<u32>,
    at: Option<&'static str>,
    rip: Option<u64>,
    cr2: Option<u64>,
    cs: Option<u16>,
    ss: Option<u16>,
    rsp: Option<u64>,
    flags: Option<(u64, u64)>,
    dr6: Option<(u64, u64)>,
}

/// A value on the debug port.
pub fn out(value: u32) -> Want {
    Want::Out(value)
}

/// An exception or interrupt with this vector.
pub fn fault(vector: u8) -> FaultWant {
    FaultWant { vector, ..FaultWant::default() }
}

impl FaultWant {
    pub fn code(mut self, code: u32) -> Self {
        self.code = Some(code);
        self
    }
    /// Returns to the instruction marked `name`.
    pub fn at(mut self, name: &'static str) -> Self {
        self.at = Some(name);
        self
    }
    pub fn rip(mut self, rip: u64) -> Self {
        self.rip = Some(rip);
        self
    }
    pub fn cr2(mut self, address: u64) -> Self {
        self.cr2 = Some(address);
        self
    }
    pub fn cs(mut self, selector: u16) -> Self {
        self.cs = Some(selector);
        self
    }
    pub fn ss(mut self, selector: u16) -> Self {
        self.ss = Some(selector);
        self
    }
    pub fn rsp(mut self, rsp: u64) -> Self {
        self.rsp = Some(rsp);
        self
    }
    /// Of the saved flags, those in `mask` are `value`.
    pub fn flags(mut self, mask: u64, value: u64) -> Self {
        self.flags = Some((mask, value));
        self
    }
    /// Of DR6, the bits in `mask` are `value`.
    pub fn dr6(mut self, mask: u64, value: u64) -> Self {
        self.dr6 = Some((mask, value));
        self
    }

    fn matches(&self, r: &Record, address: &dyn Fn(&str) -> Option<u64>) -> bool {
        let rip = match self.at {
            Some(name) => address(name),
            None => self.rip,
        };
        let same = |want: Option<u64>, got: u64| want.is_none_or(|want| want == got);
        let masked = |want: Option<(u64, u64)>, got: u64| {
            want.is_none_or(|(mask, value)| got & mask == value)
        };
        r.vector == u64::from(self.vector)
            && same(self.code.map(u64::from), r.code)
            && (self.at.is_none() || rip.is_some())
            && same(rip, r.rip)
            && same(self.cr2, r.cr2)
            && same(self.cs.map(u64::from), r.cs)
            && same(self.ss.map(u64::from), r.ss)
            && same(self.rsp, r.rsp)
            && masked(self.flags, r.rflags)
            && masked(self.dr6, r.dr6)
    }
}

impl From<FaultWant> for Want {
    fn from(want: FaultWant) -> Self {
        Self::Fault(want)
    }
}

impl Want {
    /// Whether `event` is what was expected; `address` says where a mark is.
    pub fn matches(&self, event: &Event, address: &dyn Fn(&str) -> Option<u64>) -> bool {
        match (self, event) {
            (Self::Out(want), Event::Out(got)) => want == got,
            (Self::Store(at, value), Event::Store(got_at, got)) => at == got_at && value == got,
            (Self::Fault(want), Event::Fault(got)) => want.matches(got, address),
            _ => false,
        }
    }

    /// In words, for the report.
    pub fn describe(&self, address: &dyn Fn(&str) -> Option<u64>) -> String {
        use fmt::Write;
        let want = match self {
            Self::Out(value) => return format!("out {value:#x}"),
            Self::Store(at, value) => return format!("store {value:#x} at {at:#x}"),
            Self::Fault(want) => want,
        };
        let mut text = vector_name(want.vector.into());
        let mut add = |name: &str, value: Option<u64>| {
            if let Some(value) = value {
                let _ = write!(text, "{name}{value:#x}");
            }
        };
        add(" code ", want.code.map(u64::from));
        add(" at ", want.at.and_then(address).or(want.rip));
        add(" cs=", want.cs.map(u64::from));
        add(" ss=", want.ss.map(u64::from));
        add(" rsp=", want.rsp);
        add(" cr2=", want.cr2);
        add(" rflags&", want.flags.map(|f| f.0));
        add("=", want.flags.map(|f| f.1));
        add(" dr6&", want.dr6.map(|f| f.0));
        add("=", want.dr6.map(|f| f.1));
        text
    }
}

/// How a case ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest, or a handler that had nowhere to return to, wrote to the exit port.
    Exit,
    /// A processor shut down.
    TripleFault,
    /// Either.
    Any,
}
