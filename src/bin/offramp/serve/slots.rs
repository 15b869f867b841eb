//! Which slot takes which request: requests wait in the order they came, and a free slot that already holds the beginning
//! of one's prompt is preferred. Plain bookkeeping, without threads or models.

use std::collections::VecDeque;

use offramp::Token;

/// Requests that wait, and slots that are free.
#[derive(Debug)]
pub struct Slots<T> {
    queue: VecDeque<T>,
    max_queue: usize,
    slots: Vec<Slot>,
    clock: u64,
}

#[derive(Debug, Default)]
struct Slot {
    busy: bool,
    /// What its K/V cache holds.
    tokens: Vec<Token>,
    used: u64,
}

impl<T> Slots<T> {
    pub fn new(n_slots: usize, max_queue: usize) -> Self {
        let slots = (0..n_slots).map(|_| Slot::default()).collect();
        Self { queue: VecDeque::new(), max_queue, slots, clock: 0 }
    }

    pub fn n_waiting(&self) -> usize {
        self.queue.len()
    }

    pub fn n_busy(&self) -> usize {
        self.slots.iter().filter(|slot| slot.busy).count()
    }

    /// Lets a request wait; gives it back if too many do. One that a free slot takes at once does not wait.
    pub fn push(&mut self, request: T) -> Result<(), T> {
        let n_free = self.slots.len() - self.n_busy();
        if self.queue.len() >= self.max_queue + n_free {
            return Err(request);
        }
        self.queue.push_back(request);
        Ok(())
    }

    /// Takes out the requests that are not wanted any more.
    pub fn retain(&mut self, is_wanted: impl FnMut(&T) -> bool) {
        self.queue.retain(is_wanted);
    }

    /// The request that waited longest and the slot that it gets, which is busy from now on; `None` if nothing waits or
    /// nothing is free.
    pub fn assign(&mut self, prompt: impl Fn(&T) -> &[Token]) -> Option<(usize, T)> {
        let index = choose(&self.slots, prompt(self.queue.front()?))?;
        self.clock += 1;
        let slot = &mut self.slots[index];
        slot.busy = true;
        slot.used = self.clock;
        Some((index, self.queue.pop_front()?))
    }

    /// The slot is free again and holds `tokens`.
    pub fn free(&mut self, index: usize, tokens: &[Token]) {
        let slot = &mut self.slots[index];
        slot.busy = false;
        slot.tokens.clear();
        slot.tokens.extend_from_slice(tokens);
    }
}

/// The free slot that shares the longest beginning with `prompt`, if that is at least half of what it holds: a system
/// prompt that all have in common is no reason to throw a long conversation away. Otherwise the one whose last use is
/// longest ago.
fn choose(slots: &[Slot], prompt: &[Token]) -> Option<usize> {
    let free = || slots.iter().enumerate().filter(|(_, slot)| !slot.busy);
    let common = |slot: &Slot| slot.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    let kin = free().filter(|(_, slot)| common(slot) > 0 && 2 * common(slot) >= slot.tokens.len());
    let best = kin.max_by_key(|(_, slot)| common(slot)).or_else(|| free().min_by_key(|(_, slot)| slot.used));
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[i32]) -> Vec<Token> {
        ids.iter().copied().map(Token).collect()
    }

    fn assign(slots: &mut Slots<Vec<Token>>, ids: &[i32]) -> usize {
        slots.push(tokens(ids)).unwrap();
        slots.assign(|prompt| prompt).unwrap().0
    }

    #[test]
    fn a_conversation_goes_on_in_its_slot() {
        let mut slots = Slots::new(3, 9);
        let first = assign(&mut slots, &[1, 2, 3]);
        let second = assign(&mut slots, &[1, 9, 9]);
        slots.free(first, &tokens(&[1, 2, 3, 4, 5]));
        slots.free(second, &tokens(&[1, 9, 9, 8]));
        assert_eq!(assign(&mut slots, &[1, 9, 9, 8, 7]), second);
        assert_eq!(assign(&mut slots, &[1, 2, 3, 4, 5, 6]), first);
    }

    #[test]
    fn a_shared_beginning_does_not_cost_a_conversation_its_slot() {
        let mut slots = Slots::new(2, 9);
        let first = assign(&mut slots, &[1, 2, 3]);
        slots.free(first, &tokens(&[1, 2, 3, 4, 5, 6, 7]));
        assert_ne!(assign(&mut slots, &[1, 2, 9]), first);
    }

    #[test]
    fn without_kin_the_one_unused_longest_is_taken() {
        let mut slots = Slots::new(2, 9);
        let first = assign(&mut slots, &[1]);
        let second = assign(&mut slots, &[2]);
        slots.free(second, &tokens(&[2]));
        slots.free(first, &tokens(&[1]));
        assert_eq!(assign(&mut slots, &[3]), first);
    }

    #[test]
    fn requests_are_served_in_the_order_they_came_and_too_many_are_given_back() {
        let mut slots = Slots::new(1, 2);
        assign(&mut slots, &[1]);
        slots.push(tokens(&[2])).unwrap();
        slots.push(tokens(&[3])).unwrap();
        assert_eq!(slots.push(tokens(&[4])), Err(tokens(&[4])));
        assert!(slots.assign(|prompt| prompt).is_none());
        slots.free(0, &[]);
        assert_eq!(slots.assign(|prompt| prompt), Some((0, tokens(&[2]))));
        slots.retain(|prompt| prompt != &tokens(&[3]));
        assert_eq!((slots.n_waiting(), slots.n_busy()), (0, 1));
    }
}
