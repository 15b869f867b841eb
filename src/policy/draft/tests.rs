//! Simulated costs and texts: drafts pay where they can, and never lose much.

use super::*;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};

/// Milliseconds of batches, and how the text goes.
#[derive(Clone, Copy)]
struct World {
    alone: f64,
    /// What a token costs alone that the text or the head offers a draft after, as a share of the others: those are easy to leave
    /// at. 1 where no token leaves.
    easy: f64,
    /// Each token more of a batch; and what all three more of a batch of four cost, where the kernels take four.
    more: f64,
    of_four: Option<f64>,
    switch: f64,
    /// Share of the tokens where the text offers something, and of its drafts that are right.
    offered: f64,
    right: f64,
    /// As a share of a token: the blocks below the exit and its check; and whether exits are sure and right.
    exit: Option<(f64, f64)>,
    /// Milliseconds of asking the head that drafts, and its drafts that are right beside what it says of them.
    head: Option<(f64, f64)>,
}

/// Nothing but the text drafts.
const PLAIN: World = World {
    alone: 8.0,
    easy: 1.0,
    more: 4.0,
    of_four: None,
    switch: 0.5,
    offered: 0.0,
    right: 0.0,
    exit: None,
    head: None,
};

impl World {
    fn batch(&self, n_drafts: usize) -> f64 {
        match (self.of_four, n_drafts) {
            (Some(more), 3) => self.alone + more,
            _ => self.alone + self.more * n_drafts as f64,
        }
    }
}

fn unit(rng: &mut TestRng) -> f64 {
    use proptest::prelude::Rng as _;
    f64::from(rng.next_u32()) / f64::from(u32::MAX)
}

/// Milliseconds of at least `n` tokens, and what they would have cost alone.
fn decode(world: &World, n: usize, seed: [u8; 32]) -> (f64, f64) {
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let tokens_leave = world.easy < 1.0;
    let mut policy =
        DraftPolicy::new(Drafters { exits: world.exit.is_some(), head: world.head.is_some(), tokens_leave });
    let (mut cost, mut alone, mut made, mut switched) = (0.0, 0.0, 0, false);
    while made < n {
        let offer = (unit(&mut rng) < world.offered).then_some(Offer { n_matched: 4, n_tokens: 7 });
        let switch = if std::mem::take(&mut switched) { world.switch } else { 0.0 };
        // How likely the head's drafts are to be right, by what it says.
        let likely: Vec<f32> = (0..7).map(|_| unit(&mut rng) as f32).collect();
        let is_easy = offer.is_some() || world.head.is_some() && likely[0] > 0.5;
        let by_itself = world.alone * if is_easy { world.easy } else { 1.0 };
        let n_right = match policy.plan(offer, 7, true) {
            Draft::None => {
                policy.learn_alone(by_itself + switch);
                cost += by_itself + switch;
                0
            }
            Draft::Lookup(k) => {
                let n_right = (0..k).take_while(|_| unit(&mut rng) < world.right).count();
                policy.learn_lookup(4, k, n_right, world.batch(k));
                cost += world.batch(k);
                switched = true;
                n_right
            }
            Draft::Head => {
                let (check, right) = world.head.unwrap();
                let (mut asked, mut chances) = (0.0, Vec::new());
                for &chance in &likely {
                    let least = policy.least(&chances, 7);
                    if least > 1.0 {
                        break;
                    }
                    asked += check;
                    if chance < least {
                        break;
                    }
                    chances.push(chance);
                }
                cost += asked;
                let k = policy.take(&chances, 7);
                if k == 0 {
                    policy.learn_alone(by_itself + switch);
                    policy.learn_head(asked, None);
                    cost += by_itself + switch;
                    0
                } else {
                    let drafts = chances[..k].iter();
                    let n_right = drafts.take_while(|&&chance| unit(&mut rng) < f64::from(chance) * right).count();
                    let verified = Verified { chances: &chances[..k], n_right, seconds: world.batch(k) };
                    policy.learn_head(asked, Some(verified));
                    cost += world.batch(k);
                    switched = true;
                    n_right
                }
            }
            Draft::Exits(k) => {
                let (share, right) = world.exit.unwrap();
                let n_right = (0..k).take_while(|_| unit(&mut rng) < right).count();
                let seconds = (k as f64 + 1.0) * share * world.alone + (1.0 - share) * world.batch(k);
                policy.learn_exits(k, n_right, seconds);
                cost += seconds;
                switched = true;
                n_right
            }
        };
        made += n_right + 1;
        alone += by_itself + n_right as f64 * world.alone * world.easy;
    }
    (cost, alone)
}

#[test]
fn a_text_that_repeats_itself_is_drafted_widely() {
    let world = World { offered: 1.0, right: 1.0, ..PLAIN };
    let (cost, alone) = decode(&world, 400, [1; 32]);
    assert!(cost < 0.65 * alone, "{cost} for {alone}");
}

#[test]
fn drafts_that_are_always_wrong_cost_at_most_two_percent() {
    for (exit, head) in [(None, None), (Some((0.5, 0.0)), None), (None, Some((0.3, 0.0))), (None, Some((9.0, 0.0)))] {
        let world = World { offered: 0.8, exit, head, ..PLAIN };
        for n in [128, 1000, 20_000] {
            let (cost, alone) = decode(&world, n, [2; 32]);
            assert!(cost <= 1.02 * alone, "{n}: {cost} for {alone}");
        }
    }
}

#[test]
fn a_head_that_knows_how_sure_it_is_drafts_where_it_is_sure() {
    // Evenly spread chances: the upper half of them is right three times in four, for half a token each.
    let world = World { head: Some((0.1, 1.0)), ..PLAIN };
    let (cost, alone) = decode(&world, 4000, [4; 32]);
    assert!(cost < 0.97 * alone, "{cost} for {alone}");
    // One that promises more than it keeps must be surer.
    let boasts = World { head: Some((0.1, 0.75)), ..PLAIN };
    let (cost, alone) = decode(&boasts, 4000, [4; 32]);
    assert!(cost < 1.002 * alone, "{cost} for {alone}");
    let nearly_free = World { more: 0.8, switch: 0.0, head: Some((0.1, 1.0)), ..PLAIN };
    let (cost, alone) = decode(&nearly_free, 4000, [4; 32]);
    assert!(cost < 0.75 * alone, "{cost} for {alone}");
}

#[test]
fn a_head_drafts_three_tokens_where_four_cost_what_two_do() {
    let two = World { head: Some((0.1, 1.0)), ..PLAIN };
    let four = World { of_four: Some(4.5), ..two };
    let ((two, two_alone), (four, four_alone)) = (decode(&two, 4000, [5; 32]), decode(&four, 4000, [5; 32]));
    assert!(four / four_alone < 0.96 * two / two_alone, "{four} for {four_alone}, {two} for {two_alone}");
}

#[test]
fn drafts_have_to_beat_what_their_tokens_cost_where_those_leave_early() {
    // All drafts are right.
    let world = World { offered: 0.9, right: 1.0, more: 3.0, ..PLAIN };
    let (cost, alone) = decode(&world, 4000, [6; 32]);
    assert!(cost < 0.6 * alone, "{cost} for {alone}");
    // Tokens alone that cost what a draft costs.
    let leave = World { easy: 3.0 / 8.0, ..world };
    let (cost, alone) = decode(&leave, 4000, [6; 32]);
    assert!(cost < 1.02 * alone, "{cost} for {alone}");
}

#[test]
fn where_one_token_more_costs_as_much_as_one_alone_nothing_is_drafted_for_long() {
    let world = World {
        more: 8.0,
        switch: 0.0,
        offered: 1.0,
        right: 0.9,
        exit: Some((0.5, 0.9)),
        head: Some((0.1, 1.0)),
        ..PLAIN
    };
    let (cost, alone) = decode(&world, 5000, [3; 32]);
    assert!(cost <= 1.02 * alone, "{cost} for {alone}");
}

#[test]
fn a_batch_that_was_held_up_is_not_the_last() {
    let mut policy = DraftPolicy::new(Drafters::default());
    let (mut cost, mut made, mut stalls) = (0.0, 0, 3);
    while made < 2000 {
        match policy.plan(Some(Offer { n_matched: 8, n_tokens: 7 }), 7, false) {
            Draft::Lookup(k) => {
                let stall = if stalls > 0 { 100.0 } else { 0.0 };
                stalls -= i32::from(stalls > 0);
                policy.learn_lookup(8, k, k, PLAIN.batch(k) + stall);
                cost += PLAIN.batch(k) + stall;
                made += k + 1;
            }
            _ => {
                policy.learn_alone(PLAIN.alone);
                cost += PLAIN.alone;
                made += 1;
            }
        }
    }
    let alone = PLAIN.alone * made as f64;
    assert!(cost < 0.75 * alone, "{cost} for {alone}");
}

#[test]
fn no_draft_is_longer_than_what_there_is_room_for() {
    let mut policy = DraftPolicy::new(Drafters::default());
    policy.learn_alone(8.0);
    policy.learn_alone(8.0);
    let plan =
        |policy: &mut DraftPolicy, n_tokens, room| policy.plan(Some(Offer { n_matched: 8, n_tokens }), room, true);
    assert_eq!(plan(&mut policy, 9, 0), Draft::None);
    assert!(matches!(plan(&mut policy, 2, 9), Draft::None | Draft::Lookup(1)));
    assert!(matches!(plan(&mut policy, 9, 3), Draft::None | Draft::Lookup(1 | 3)));
}

proptest! {
    #[test]
    fn random_drafts_never_lose_much(
        more in 0.5f64..10.0,
        switch in 0.0f64..1.5,
        offered in 0.0f64..1.0,
        right in 0.0f64..1.0,
        share in 0.2f64..0.9,
        exits in proptest::option::of(0.0f64..1.0),
        head in proptest::option::of((0.01f64..4.0, 0.0f64..1.0)),
        easy in prop_oneof![Just(1.0), 0.3f64..1.0],
        of_four in proptest::option::of(1.0f64..12.0),
        seed in proptest::array::uniform32(any::<u8>()),
    ) {
        let exit = exits.map(|right| (share, right));
        let world = World { easy, more, of_four, switch, offered, right, exit, head, ..PLAIN };
        let (cost, alone) = decode(&world, 3000, seed);
        prop_assert!(cost <= 1.02 * alone, "{cost} for {alone}");
    }
}
