//! Simulated costs and texts: drafts pay where they can, and never lose much.

use super::*;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};

/// Milliseconds of batches, and how the text goes.
struct World {
    alone: f64,
    /// Each token more of a batch.
    more: f64,
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
const PLAIN: World = World { alone: 8.0, more: 4.0, switch: 0.5, offered: 0.0, right: 0.0, exit: None, head: None };

fn unit(rng: &mut TestRng) -> f64 {
    use proptest::prelude::Rng as _;
    f64::from(rng.next_u32()) / f64::from(u32::MAX)
}

/// Milliseconds of at least `n` tokens, and how many they were.
fn decode(world: &World, n: usize, seed: [u8; 32]) -> (f64, usize) {
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut policy = DraftPolicy::new(Drafters { exits: world.exit.is_some(), head: world.head.is_some() });
    let (mut cost, mut made, mut switched) = (0.0, 0, false);
    while made < n {
        let offer = (unit(&mut rng) < world.offered).then_some(Offer { n_matched: 4, n_tokens: 7 });
        let switch = if std::mem::take(&mut switched) { world.switch } else { 0.0 };
        match policy.plan(offer, 7, true) {
            Draft::None => {
                let seconds = world.alone + switch;
                policy.learn_alone(seconds);
                cost += seconds;
                made += 1;
            }
            Draft::Lookup(k) => {
                let n_right = (0..k).take_while(|_| unit(&mut rng) < world.right).count();
                let seconds = world.alone + world.more * k as f64;
                policy.learn_lookup(4, k, n_right, seconds);
                cost += seconds;
                made += n_right + 1;
                switched = true;
            }
            Draft::Head(least) => {
                let (check, right) = world.head.unwrap();
                let likely = unit(&mut rng);
                let is_right = unit(&mut rng) < likely * right;
                cost += check;
                made += 1;
                if likely < f64::from(least) {
                    policy.learn_alone(world.alone + switch);
                    policy.learn_head(check, None);
                    cost += world.alone + switch;
                    continue;
                }
                let seconds = world.alone + world.more;
                policy.learn_head(check, Some(Verified { chance: likely as f32, is_right, seconds }));
                cost += seconds;
                made += usize::from(is_right);
                switched = true;
            }
            Draft::Exits(k) => {
                let (share, right) = world.exit.unwrap();
                let n_right = (0..k).take_while(|_| unit(&mut rng) < right).count();
                let k_f = k as f64;
                let seconds = (k_f + 1.0) * share * world.alone + (1.0 - share) * (world.alone + k_f * world.more);
                policy.learn_exits(k, n_right, seconds);
                cost += seconds;
                made += n_right + 1;
                switched = true;
            }
        }
    }
    (cost, made)
}

#[test]
fn a_text_that_repeats_itself_is_drafted_widely() {
    let world = World { offered: 1.0, right: 1.0, ..PLAIN };
    let (cost, made) = decode(&world, 400, [1; 32]);
    assert!(cost < 0.65 * 8.0 * made as f64, "{cost} for {made}");
}

#[test]
fn drafts_that_are_always_wrong_cost_at_most_two_percent() {
    for (exit, head) in [(None, None), (Some((0.5, 0.0)), None), (None, Some((0.3, 0.0))), (None, Some((9.0, 0.0)))] {
        let world = World { offered: 0.8, exit, head, ..PLAIN };
        for n in [128, 1000, 20_000] {
            let (cost, made) = decode(&world, n, [2; 32]);
            assert!(cost <= 1.02 * 8.0 * made as f64, "{n}: {cost} for {made}");
        }
    }
}

#[test]
fn a_head_that_knows_how_sure_it_is_drafts_where_it_is_sure() {
    // Evenly spread chances: the upper half of them is right three times in four, for half a token each.
    let world = World { head: Some((0.1, 1.0)), ..PLAIN };
    let (cost, made) = decode(&world, 4000, [4; 32]);
    assert!(cost < 0.97 * 8.0 * made as f64, "{cost} for {made}");
    // One that promises more than it keeps must be surer.
    let boasts = World { head: Some((0.1, 0.75)), ..PLAIN };
    let (cost, made) = decode(&boasts, 4000, [4; 32]);
    assert!(cost < 1.002 * 8.0 * made as f64, "{cost} for {made}");
    let nearly_free = World { more: 0.8, switch: 0.0, head: Some((0.1, 1.0)), ..PLAIN };
    let (cost, made) = decode(&nearly_free, 4000, [4; 32]);
    assert!(cost < 0.75 * 8.0 * made as f64, "{cost} for {made}");
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
    let (cost, made) = decode(&world, 5000, [3; 32]);
    assert!(cost <= 1.02 * 8.0 * made as f64, "{cost} for {made}");
}

#[test]
fn no_draft_is_longer_than_what_there_is_room_for() {
    let mut policy = DraftPolicy::new(Drafters { exits: false, head: false });
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
        seed in proptest::array::uniform32(any::<u8>()),
    ) {
        let exit = exits.map(|right| (share, right));
        let world = World { more, switch, offered, right, exit, head, ..PLAIN };
        let (cost, made) = decode(&world, 3000, seed);
        prop_assert!(cost <= 1.02 * 8.0 * made as f64, "{cost} for {made} tokens");
    }
}
