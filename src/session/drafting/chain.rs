//! What the head drafts, one token after another: each from the state and the token before it, of which the first state is the
//! model's and the others are what the head made of them.

use crate::error::Result;
use crate::heads::DraftHead;
use crate::llama::Token;
use crate::policy::DraftPolicy;

/// The most drafts of the head under a policy that verifies all there are.
const N_ALWAYS: usize = 3;

/// The final states of the last decode. One that an edit of the text has overtaken drafts badly, and does no other harm.
#[derive(Debug, Default)]
pub(super) struct States {
    /// The position of the first.
    first: usize,
    /// `[n_embd, n]`.
    values: Vec<f32>,
}

impl States {
    /// Forgets all; those that are added are of the positions from `first` on.
    pub(super) fn restart(&mut self, first: usize) {
        self.values.clear();
        self.first = first;
    }

    /// `[n_embd, n]`, of the next positions.
    pub(super) fn extend(&mut self, states: &[f32]) {
        self.values.extend_from_slice(states);
    }

    /// The state `[n_embd]` at a position.
    fn at(&self, position: usize, n_embd: usize) -> Option<&[f32]> {
        let start = position.checked_sub(self.first)?.checked_mul(n_embd)?;
        self.values.get(start..start.checked_add(n_embd)?)
    }
}

/// The head, what it reads, and its drafts.
#[derive(Debug)]
pub(super) struct Chain {
    head: DraftHead,
    pub(super) states: States,
    pub(super) drafts: Vec<Token>,
    /// The chances that the drafts are right, if all before are.
    pub(super) chances: Vec<f32>,
    state: Vec<f32>,
}

impl Chain {
    pub(super) fn new(head: DraftHead) -> Self {
        Self { head, states: States::default(), drafts: Vec::new(), chances: Vec::new(), state: Vec::new() }
    }

    /// True if there is the state at `position`.
    pub(super) fn can_follow(&self, position: usize) -> bool {
        self.states.at(position, self.head.n_embd()).is_some()
    }

    /// Drafts what follows `token`, which came of the state at `before`: as much as `policy` says could pay, at most `room`;
    /// with `always`, whatever the head says.
    ///
    /// # Errors
    /// [`Error::Heads`](crate::Error::Heads).
    pub(super) fn draft(
        &mut self,
        before: usize,
        token: Token,
        room: usize,
        policy: &DraftPolicy,
        always: bool,
    ) -> Result<()> {
        self.drafts.clear();
        self.chances.clear();
        self.state.clear();
        let Some(state) = self.states.at(before, self.head.n_embd()) else { return Ok(()) };
        self.state.extend_from_slice(state);
        let mut token = token;
        while self.drafts.len() < if always { room.min(N_ALWAYS) } else { room } {
            let least = if always { 0.0 } else { policy.least(&self.chances, room) };
            if least > 1.0 {
                break;
            }
            let Some((draft, chance)) = self.head.draft(&self.state, token, least)? else { break };
            self.drafts.push(draft);
            self.chances.push(chance);
            self.state.clear();
            self.state.extend_from_slice(self.head.state());
            token = draft;
        }
        Ok(())
    }
}
