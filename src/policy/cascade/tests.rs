//! The policy against simulated models: what a text costs with it, without it, and at best.

use super::*;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};

/// Costs in milliseconds, and where checks succeed.
#[derive(Debug, Clone)]
struct World {
    n_layer: u32,
    layer: f64,
    matrix: f64,
    screen: f64,
    check: f64,
    kv: KvCost,
    /// K/V of one skipped block, at the exit or in a batch.
    skipped: f64,
    /// Layer, and share of the tokens that leave there if they are checked.
    exits: Vec<(u32, f64)>,
    screened: f64,
}

/// SmolLM2-135M on two cores, about.
fn small() -> World {
    World {
        n_layer: 30,
        layer: 0.2,
        matrix: 2.0,
        screen: 0.7,
        check: 0.75,
        kv: KvCost::AtExit,
        skipped: 0.01,
        exits: vec![(9, 0.1), (14, 0.2), (20, 0.4), (26, 0.5)],
        screened: 0.95,
    }
}

impl World {
    fn policy(&self) -> CascadePolicy {
        let layers: Vec<u32> = self.exits.iter().map(|exit| exit.0).collect();
        CascadePolicy::new(self.n_layer, &layers, true, self.kv, false)
    }

    fn plain(&self, n: usize) -> f64 {
        n as f64 * (f64::from(self.n_layer) * self.layer + self.matrix)
    }

    /// Milliseconds of one token. A batch that catches up costs what it costs with the token that pended.
    fn decode(&self, policy: &mut CascadePolicy, mut draw: impl FnMut() -> f64) -> f64 {
        let plan = policy.plan(None);
        let mut seen = Seen::default();
        let mut cost = 0.0;
        let mut trial_failed = false;
        for planned in &plan.exits {
            if planned.on_trial && trial_failed {
                continue;
            }
            let (layer, success) = self.exits[planned.exit];
            let left = draw() < success;
            trial_failed |= planned.on_trial && !left;
            seen.exits.push(Reached { exit: planned.exit, seconds: self.check, left });
            cost += self.check;
            if left {
                let skipped = self.n_layer - 1 - layer;
                (seen.n_layers, seen.layers) = (layer + 1, f64::from(layer + 1) * self.layer);
                match self.kv {
                    KvCost::AtExit => seen.kv = Some(f64::from(skipped) * self.skipped),
                    KvCost::Later => {
                        let seconds = f64::from(skipped) * (self.layer + self.skipped);
                        seen.caught_up = Some((CaughtUp { n_tokens: 1, n_layers: skipped }, seconds));
                    }
                }
                policy.learn(&seen);
                return cost + seen.layers + f64::from(skipped) * self.skipped;
            }
        }
        (seen.n_layers, seen.layers) = (self.n_layer, f64::from(self.n_layer) * self.layer);
        cost += seen.layers;
        let confident = draw() < self.screened;
        if plan.norm != AtNorm::Plain {
            seen.screen = Some((self.screen, confident));
            cost += self.screen;
        }
        if plan.norm != AtNorm::Screen || !confident {
            cost += self.matrix;
            seen.matrix = (plan.norm != AtNorm::Plain).then_some(self.matrix);
        }
        policy.learn(&seen);
        cost
    }

    fn text(&self, n: usize, seed: [u8; 32]) -> f64 {
        let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let mut policy = self.policy();
        (0..n).map(|_| self.decode(&mut policy, || unit(&mut rng))).sum()
    }

    /// What the text costs where every check is always made.
    fn always(&self, n: usize) -> f64 {
        let mut reach = 1.0;
        let mut cost = 0.0;
        let mut below = 0;
        for &(layer, success) in &self.exits {
            let skipped = f64::from(self.n_layer - 1 - layer) * self.skipped;
            cost += reach * (f64::from(layer + 1 - below) * self.layer + self.check + success * skipped);
            reach *= 1.0 - success;
            below = layer + 1;
        }
        let end = f64::from(self.n_layer - below) * self.layer + self.screen + (1.0 - self.screened) * self.matrix;
        n as f64 * (cost + reach * end)
    }
}

fn unit(rng: &mut TestRng) -> f64 {
    use proptest::prelude::Rng as _;
    f64::from(rng.next_u32()) / f64::from(u32::MAX)
}

#[test]
fn perfect_heads_leave_at_the_first_exit_after_the_measurement() {
    let world = World { exits: vec![(9, 1.0), (20, 1.0)], screened: 1.0, ..small() };
    let best = 10.0 * world.layer + world.check + 20.0 * world.skipped;
    let cost = world.text(100, [1; 32]);
    assert!(cost <= 98.0 * best + 2.0 * (world.plain(1) + world.screen) + 1e-6, "{cost} against {best} a token");
}

#[test]
fn heads_that_are_always_wrong_cost_at_most_two_percent() {
    for kv in [KvCost::AtExit, KvCost::Later] {
        let exits = small().exits.iter().map(|&(layer, _)| (layer, 0.0)).collect();
        let world = World { exits, screened: 0.0, kv, ..small() };
        for n in [128, 1000, 20_000] {
            let cost = world.text(n, [2; 32]);
            assert!(cost <= 1.02 * world.plain(n), "{n} tokens: {cost} against {}", world.plain(n));
        }
    }
}

#[test]
fn a_screen_alone_is_used_from_the_third_token_on() {
    let world = World { exits: Vec::new(), screened: 1.0, ..small() };
    let best = 100.0 * (6.0 + world.screen) + 2.0 * world.matrix;
    assert!((world.text(100, [3; 32]) - best).abs() < 1e-9);
}

#[test]
fn checks_dearer_than_what_they_save_are_dropped_even_if_they_never_fail() {
    let world = World { exits: vec![(28, 1.0)], check: 4.0, screen: 2.5, screened: 1.0, ..small() };
    let cost = world.text(10_000, [4; 32]);
    assert!(cost <= 1.02 * world.plain(10_000), "{cost}");
}

#[test]
fn a_text_that_turns_easy_is_found_again() {
    let hard = World { exits: vec![(14, 0.0)], screened: 0.0, ..small() };
    let easy = World { exits: vec![(14, 0.9)], screened: 0.9, ..small() };
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[5; 32]);
    let mut policy = hard.policy();
    let mut cost = 0.0;
    for i in 0..4000 {
        let world = if i < 1000 { &hard } else { &easy };
        cost += world.decode(&mut policy, || unit(&mut rng));
    }
    assert!(cost < 0.85 * hard.plain(4000), "{cost}");
}

#[test]
fn a_single_outlier_does_not_turn_the_screen_off() {
    let world = World { exits: Vec::new(), screened: 1.0, ..small() };
    let mut policy = world.policy();
    for i in 0..200 {
        let slow = World { screen: if i == 100 { 300.0 } else { world.screen }, ..world.clone() };
        slow.decode(&mut policy, || 0.0);
        assert!(i < 2 || policy.plan(None).norm == AtNorm::Screen, "token {i}");
    }
}

#[test]
fn checks_that_another_process_made_dear_are_back_soon_after_it() {
    let world = World { exits: vec![(20, 0.6)], screened: 0.9, ..small() };
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[6; 32]);
    let mut policy = world.policy();
    for i in 0..1000 {
        // Threads that wait for each other wait for the other process too, at one check in five.
        let is_held_up = (300..600).contains(&i) && unit(&mut rng) < 0.2;
        let held_up = World { check: 20.0, screen: 20.0, ..world.clone() };
        let world = if is_held_up { &held_up } else { &world };
        world.decode(&mut policy, || unit(&mut rng));
    }
    let mut late = policy.clone();
    let cost: f64 = (0..1000).map(|_| world.decode(&mut late, || unit(&mut rng))).sum();
    assert!(cost < 1.05 * world.always(1000), "{cost} against {}", world.always(1000));
}

#[test]
fn while_tokens_pend_only_their_exit_is_planned() {
    let world = World { exits: vec![(9, 1.0), (20, 1.0)], ..small() };
    let mut policy = world.policy();
    for _ in 0..20 {
        world.decode(&mut policy, || 0.5);
    }
    let exits = |plan: Plan| plan.exits.iter().map(|planned| planned.exit).collect::<Vec<_>>();
    assert_eq!(exits(policy.plan(Some(20))), [1]);
    assert_eq!(exits(policy.plan(Some(15))), [0; 0]);
}

#[test]
fn where_asked_to_every_check_is_made() {
    let world = World { exits: vec![(9, 0.0), (20, 0.0)], screened: 0.0, ..small() };
    let mut policy = CascadePolicy::new(world.n_layer, &[9, 20], true, world.kv, true);
    for _ in 0..500 {
        world.decode(&mut policy, || 0.5);
    }
    let plan = policy.plan(None);
    assert_eq!((plan.exits.len(), plan.norm), (2, AtNorm::Screen));
}

proptest! {
    #[test]
    fn random_heads_never_lose_much(
        rates in proptest::array::uniform4(0.0f64..0.6),
        screened in 0.0f64..1.0,
        check in 0.1f64..1.5,
        matrix in 0.5f64..8.0,
        later in any::<bool>(),
        skipped in 0.005f64..0.15,
        seed in proptest::array::uniform32(any::<u8>()),
    ) {
        let exits = small().exits.iter().zip(rates).map(|(&(layer, _), rate)| (layer, rate)).collect();
        let kv = if later { KvCost::Later } else { KvCost::AtExit };
        let world = World { exits, screened, check, screen: check, matrix, kv, skipped, ..small() };
        let (cost, plain) = (world.text(4000, seed), world.plain(4000));
        prop_assert!(cost <= 1.02 * plain, "{cost} against {plain}");
        // Nor is much of a gain left behind.
        let always = world.always(4000);
        if always < 0.8 * plain {
            prop_assert!(cost <= always + 0.08 * plain, "{cost} against {always} of {plain}");
        }
    }
}
