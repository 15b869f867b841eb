//! AdamW (Loshchilov and Hutter, arXiv 1711.05101) whose decay pulls a weight to where it started, and not to zero.
//!
//! On the processor a step is one pass over each variable, in place and on all threads: candle's own optimizer makes a dozen, each
//! into memory that is asked for anew, which took as long as all products of a step. Other devices do it by candle's
//! operations. It refuses nothing: what a gradient that is no number does, the loss shows.

use std::cell::RefCell;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Result, Tensor, Var, bail};
use rayon::prelude::*;

/// How long a gradient is remembered, and its square.
const REMEMBERED: (f64, f64) = (0.9, 0.99);
/// What keeps a step finite where no gradient was.
const LEAST: f64 = 1e-8;
/// The values that a thread takes at a time.
const PIECE: usize = 1 << 14;

/// What is trained.
#[derive(Debug, Clone)]
pub struct Variable {
    /// Its value.
    pub value: Var,
    /// Where decay pulls it, of the same shape; zero without.
    pub origin: Option<Tensor>,
}

/// The optimizer and what it remembers of each variable.
#[derive(Debug)]
pub struct AdamW {
    states: Vec<(Variable, Moments)>,
    decay: f64,
    n_steps: i32,
}

/// Running means of a variable's gradient and of its square, where they are used.
#[derive(Debug)]
enum Moments {
    Host(Host),
    Device { first: Tensor, second: Tensor },
}

/// What a step on the processor has at hand besides value and gradient.
#[derive(Debug)]
struct Host {
    first: Vec<f32>,
    second: Vec<f32>,
    origin: Option<Vec<f32>>,
}

/// What one step multiplies by.
#[derive(Debug, Clone, Copy)]
struct Step {
    rate: f64,
    decay: f64,
    /// What makes up for means that started at zero.
    first: f64,
    second: f64,
}

impl AdamW {
    /// Nothing remembered yet. `decay` is the share of the way to its origin that a weight goes back in a step of rate 1.
    ///
    /// # Errors
    ///
    /// What the device says.
    pub fn new(variables: Vec<Variable>, decay: f64) -> Result<AdamW> {
        let states = variables.into_iter().map(|variable| {
            let moments = match variable.value.device() {
                Device::Cpu => {
                    let zeros = vec![0.0; variable.value.elem_count()];
                    let origin = variable.origin.as_ref().map(|origin| origin.flatten_all()?.to_vec1());
                    Moments::Host(Host { first: zeros.clone(), second: zeros, origin: origin.transpose()? })
                }
                _ => Moments::Device { first: variable.value.zeros_like()?, second: variable.value.zeros_like()? },
            };
            Ok((variable, moments))
        });
        Ok(AdamW { states: states.collect::<Result<_>>()?, decay, n_steps: 0 })
    }

    /// Takes a step of size `rate` along the gradients of a loss.
    ///
    /// # Errors
    ///
    /// What the device says.
    pub fn step(&mut self, gradients: &GradStore, rate: f64) -> Result<()> {
        self.n_steps += 1;
        let step = Step::new(rate, self.decay, self.n_steps);
        for (variable, moments) in &mut self.states {
            let Some(gradient) = gradients.get(&variable.value) else { continue };
            match moments {
                Moments::Host(host) => {
                    variable.value.inplace_op2(&gradient.contiguous()?, &OnHost(step, RefCell::new(host)))?;
                }
                Moments::Device { first, second } => on_device(variable, gradient, first, second, step)?,
            }
        }
        Ok(())
    }
}

/// A step as an operation of candle's, which hands out a variable's values to no one else.
struct OnHost<'a>(Step, RefCell<&'a mut Host>);

impl InplaceOp2 for OnHost<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, value: &mut CpuStorage, at: &Layout, gradient: &CpuStorage, of: &Layout) -> Result<()> {
        let (CpuStorage::F32(value), CpuStorage::F32(gradient)) = (value, gradient) else {
            bail!("weights and gradients are expected in single precision");
        };
        let (Some(at), Some(of)) = (at.contiguous_offsets(), of.contiguous_offsets()) else {
            bail!("weights and gradients are expected in one piece");
        };
        let (value, gradient) = (&mut value[at.0..at.1], &gradient[of.0..of.1]);
        let step = self.0;
        let Host { first, second, origin } = &mut **self.1.borrow_mut();
        let pieces = value.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE));
        let remembered = first.par_chunks_mut(PIECE).zip(second.par_chunks_mut(PIECE));
        pieces.zip(remembered).enumerate().for_each(|(i, ((value, gradient), (first, second)))| {
            let origin = origin.as_ref().map(|origin| &origin[i * PIECE..][..value.len()]);
            step.take(value, gradient, first, second, origin);
        });
        Ok(())
    }
}

impl Step {
    /// The `n`th step, the first of which is 1.
    fn new(rate: f64, decay: f64, n: i32) -> Step {
        let made_up = |share: f64| 1.0 / (1.0 - share.powi(n));
        Step { rate, decay, first: made_up(REMEMBERED.0), second: made_up(REMEMBERED.1) }
    }

    fn take(self, value: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32], origin: Option<&[f32]>) {
        let share = |a: f64| (a as f32, (1.0 - a) as f32);
        let ((old_first, new_first), (old_second, new_second)) = (share(REMEMBERED.0), share(REMEMBERED.1));
        let (rate, back) = ((self.rate * self.first) as f32, (self.rate * self.decay) as f32);
        let (made_up, least) = (self.second as f32, LEAST as f32);
        if let Some(origin) = origin {
            value.iter_mut().zip(origin).for_each(|(value, origin)| *value -= back * (*value - origin));
        } else {
            value.iter_mut().for_each(|value| *value -= back * *value);
        }
        for (((value, gradient), first), second) in value.iter_mut().zip(gradient).zip(first).zip(second) {
            *first = old_first * *first + new_first * gradient;
            *second = old_second * *second + new_second * gradient * gradient;
            *value -= rate * *first / ((made_up * *second).sqrt() + least);
        }
    }
}

fn on_device(
    variable: &Variable,
    gradient: &Tensor,
    first: &mut Tensor,
    second: &mut Tensor,
    step: Step,
) -> Result<()> {
    *first = ((&*first * REMEMBERED.0)? + (gradient * (1.0 - REMEMBERED.0))?)?;
    *second = ((&*second * REMEMBERED.1)? + (gradient.sqr()? * (1.0 - REMEMBERED.1))?)?;
    let along = (&*first / ((&*second * step.second)?.sqrt()? + LEAST)?)?;
    let value = variable.value.as_tensor();
    let back = match &variable.origin {
        Some(origin) => (value - origin)?,
        None => value.clone(),
    };
    let moved = ((along * (step.rate * step.first))? + (back * (step.rate * step.decay))?)?;
    variable.value.set(&(value - moved)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_nn::{Optimizer, ParamsAdamW};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// More than one piece, and the last of them short.
    const N: usize = PIECE + 77;

    fn draw(rng: &mut ChaCha8Rng) -> Tensor {
        Tensor::from_iter((0..N).map(|_| rng.random::<f32>() - 0.5), &Device::Cpu).unwrap()
    }

    /// The gradients of `Σ (value - goal)² weight`.
    fn gradients(value: &Var, goal: &Tensor, weight: &Tensor) -> GradStore {
        let away = (value.as_tensor() - goal).unwrap();
        (away.sqr().unwrap() * weight).unwrap().sum_all().unwrap().backward().unwrap()
    }

    fn farthest(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn steps_are_those_of_candle_where_decay_pulls_to_zero() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let (start, goal, weight) = (draw(&mut rng), draw(&mut rng), draw(&mut rng).abs().unwrap());
        let (ours, theirs) = (Var::from_tensor(&start).unwrap(), Var::from_tensor(&start).unwrap());
        let mut adamw = AdamW::new(vec![Variable { value: ours.clone(), origin: None }], 0.3).unwrap();
        let params = ParamsAdamW { lr: 0.0, weight_decay: 0.3, beta2: REMEMBERED.1, ..ParamsAdamW::default() };
        let mut reference = candle_nn::AdamW::new(vec![theirs.clone()], params).unwrap();
        for step in 0..30 {
            let rate = 0.01 + 0.001 * f64::from(step);
            adamw.step(&gradients(&ours, &goal, &weight), rate).unwrap();
            reference.set_learning_rate(rate);
            reference.step(&gradients(&theirs, &goal, &weight)).unwrap();
        }
        assert!(farthest(&ours, &start) > 0.1);
        assert!(farthest(&ours, &theirs) < 1e-5, "{}", farthest(&ours, &theirs));
    }

    #[test]
    fn decay_pulls_to_the_origin_on_every_device_alike() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let (start, origin, goal) = (draw(&mut rng), draw(&mut rng), draw(&mut rng));
        let weight = goal.ones_like().unwrap();
        let by_operations = Variable { value: Var::from_tensor(&start).unwrap(), origin: Some(origin.clone()) };
        let (mut first, mut second) = (start.zeros_like().unwrap(), start.zeros_like().unwrap());
        let in_place = Variable { value: Var::from_tensor(&start).unwrap(), origin: Some(origin.clone()) };
        let mut adamw = AdamW::new(vec![in_place.clone()], 0.5).unwrap();
        for n in 1..=20 {
            adamw.step(&gradients(&in_place.value, &goal, &weight), 0.02).unwrap();
            let step = Step::new(0.02, 0.5, n);
            let found = gradients(&by_operations.value, &goal, &weight);
            on_device(&by_operations, found.get(&by_operations.value).unwrap(), &mut first, &mut second, step).unwrap();
        }
        assert!(farthest(&in_place.value, &by_operations.value) < 1e-5);

        let alone = Variable { value: Var::from_tensor(&start).unwrap(), origin: Some(origin.clone()) };
        let mut adamw = AdamW::new(vec![alone.clone()], 0.5).unwrap();
        for _ in 0..40 {
            // No gradient at all: what is left is the decay.
            adamw.step(&gradients(&alone.value, &goal, &goal.zeros_like().unwrap()), 1.0).unwrap();
        }
        assert!(farthest(&alone.value, &origin) < 1e-6);
    }
}
