//! The account that keeps checks from losing: what they cost is taken from it, what they save is put in.
//!
//! It starts with what one token costs and earns a hundredth of a token with each, so that whatever the checks do, a text
//! of `n` tokens takes at most as long as `1.01 n + 1` plain ones. Savings are kept up to a few tokens' worth: a long
//! easy stretch must not pay for a long hard one.

/// Tokens' worth at the start.
const CREDIT: f64 = 1.0;
/// Tokens' worth earned a token.
const RATE: f64 = 0.01;
/// The most that is kept, in tokens' worth.
const CAP: f64 = 4.0;

/// In tokens' worth, since what a token costs is only known after the first ones.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Account {
    balance: f64,
}

impl Default for Account {
    fn default() -> Self {
        Self { balance: CREDIT }
    }
}

impl Account {
    /// A token was decoded.
    pub(super) fn earn(&mut self) {
        self.balance = (self.balance + RATE).min(CAP);
    }

    /// A check cost `seconds` and saved `saved` of them, where a plain token takes `token`.
    pub(super) fn book(&mut self, seconds: f64, saved: f64, token: f64) {
        if token > 0.0 {
            self.balance = (self.balance + (saved - seconds) / token).min(CAP);
        }
    }

    /// True if `seconds` may be spent.
    pub(super) fn covers(&self, seconds: f64, token: f64) -> bool {
        self.balance * token >= seconds && self.balance > 0.0
    }
}
