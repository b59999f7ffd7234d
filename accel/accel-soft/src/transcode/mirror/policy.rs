//! Which program is mirrored.
//!
//! It takes some microseconds to mirror a page, so this is for programs that run much and change their
//! memory little. Time is counted in ticks of the TSC, of which there are 1 to 5 in a nanosecond.

/// A program must have run for this long, a millisecond or so, before it is mirrored.
const WARM: u64 = 3_000_000;
/// About what it takes to mirror a page.
const FILL: u64 = 25_000;
/// What the signal for an access that is not mirrored takes, before and after its handler.
pub const SIGNAL: u64 = 10_000;
/// What a program may spend on its mirror before it has run for as long: some thousand pages.
const CREDIT: i64 = 20_000_000;
/// What it may save up for the times when it changes its memory.
const SAVINGS: i64 = 1_000_000_000;
/// It is not mirrored for this long if it spends more; longer each time.
const PENALTY: u64 = 2_000_000_000;
/// Programs that are known.
const PROGRAMS: usize = 64;

/// How much a program has run while it was not mirrored.
#[derive(Clone, Copy, Default)]
struct Account {
    root: u64,
    ticks: u64,
    /// It is to run for so long before it is mirrored.
    wanted: u64,
}

/// See the module's text.
pub struct Policy {
    /// Whatever runs is mirrored: for tests.
    is_eager: bool,
    accounts: [Account; PROGRAMS],
    /// What the program that is mirrored may still spend.
    credit: i64,
    /// What was spent since it last earned something.
    spent_since: u64,
    /// How long others have run since.
    idle: u64,
    root: u64,
}

impl Policy {
    /// Nobody has run yet. `is_eager`, for tests: whatever runs is mirrored.
    pub fn new(is_eager: bool) -> Self {
        Self {
            is_eager,
            accounts: [Account::default(); PROGRAMS],
            credit: 0,
            spent_since: 0,
            idle: 0,
            root: 0,
        }
    }

    fn place(root: u64) -> usize {
        (root >> 12) as usize % PROGRAMS
    }

    fn account(&mut self, root: u64) -> &mut Account {
        let account = &mut self.accounts[Self::place(root)];
        if account.root != root {
            *account = Account { root, ticks: 0, wanted: WARM };
        }
        account
    }

    /// A program that is not mirrored ran for `ticks`.
    pub fn ran(&mut self, root: u64, ticks: u64) {
        self.account(root).ticks += ticks;
        self.idle = self.idle.saturating_add(ticks);
    }

    /// The program that is mirrored ran for `ticks`, what was spent included.
    pub fn earned(&mut self, ticks: u64) {
        self.idle = 0;
        let ticks = ticks.saturating_sub(std::mem::take(&mut self.spent_since));
        self.credit = self.credit.saturating_add_unsigned(ticks).min(SAVINGS);
    }

    /// So much was spent on its mirror.
    pub fn spent(&mut self, ticks: u64) {
        self.spent_since += ticks;
        self.credit = self.credit.saturating_sub_unsigned(ticks);
    }

    /// Its mirror had to be emptied, for the host allows no more mappings.
    pub fn overflowed(&mut self) {
        self.credit -= SAVINGS / 2;
    }

    /// It has memory where this process has its own.
    pub fn collided(&mut self) {
        self.credit = i64::MIN / 2;
    }

    /// Whether the program is not to be mirrored for the time being.
    pub fn is_banned(&mut self, root: u64) -> bool {
        let account = *self.account(root);
        !self.is_eager && account.ticks < account.wanted && account.wanted > WARM
    }

    /// Whether a program should be mirrored instead of the present one, which has so many pages.
    pub fn should_take(&self, root: u64, pages: usize) -> bool {
        let account = self.accounts[Self::place(root)];
        // The present one would have to be mirrored anew, too, if it is still there.
        let cost = (pages as u64 * FILL / 4).saturating_sub(self.idle.saturating_mul(4));
        self.is_eager || account.root == root && account.ticks >= account.wanted.max(cost)
    }

    /// It is mirrored from now on.
    pub fn take(&mut self, root: u64) {
        self.account(root).ticks = 0;
        self.root = root;
        self.credit = CREDIT;
        self.idle = 0;
    }

    /// Whether pages may be mirrored for the present program; if not, it is not to be mirrored for a
    /// while.
    pub fn may_fill(&mut self) -> bool {
        if self.credit >= 0 || self.is_eager {
            return true;
        }
        self.credit = CREDIT;
        let account = self.account(self.root);
        account.ticks = 0;
        account.wanted = account.wanted.saturating_mul(2).max(PENALTY);
        tracing::debug!("the memory of the program at {:#x} changes too often", self.root);
        false
    }
}
