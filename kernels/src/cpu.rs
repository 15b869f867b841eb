//! Picks an instruction set while running, and calls code that was compiled for it.
//!
//! The environment variable `OFFRAMP_CPU` forces a narrower one. Refuses sets that the processor does not have.

use std::sync::OnceLock;

use super::Weights;
use super::format::{self, Format};
#[cfg(target_arch = "aarch64")]
use super::isa::neon::Neon;
use super::isa::{Isa, plain::Plain};
#[cfg(target_arch = "x86_64")]
use super::isa::{avx2::Avx2, avx512::Avx512};

/// An instruction set that there are kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cpu {
    /// AVX-512 with BW, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2, FMA, F16C and AVX-VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx2Vnni,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// NEON with dot products.
    #[cfg(target_arch = "aarch64")]
    NeonDotprod,
    /// NEON, which every 64-bit ARM processor has.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// No more than the target has.
    Plain,
}

impl Cpu {
    /// Every set that this processor has, the best first.
    pub fn all() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let has_avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            if has_avx2 && has_avx512 {
                found.push(Self::Avx512);
            }
            if has_avx2 && is_x86_feature_detected!("avxvnni") {
                found.push(Self::Avx2Vnni);
            }
            if has_avx2 {
                found.push(Self::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                found.push(Self::NeonDotprod);
            }
            if std::arch::is_aarch64_feature_detected!("neon") {
                found.push(Self::Neon);
            }
        }
        found.push(Self::Plain);
        found
    }

    /// The set to use: the one that `OFFRAMP_CPU` names if the processor has it, else the best.
    pub fn here() -> Self {
        static HERE: OnceLock<Cpu> = OnceLock::new();
        *HERE.get_or_init(|| {
            let all = Self::all();
            let forced = std::env::var("OFFRAMP_CPU").ok();
            forced.and_then(|name| all.iter().copied().find(|cpu| cpu.name() == name)).unwrap_or(all[0])
        })
    }

    /// The name that `OFFRAMP_CPU` takes.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Vnni => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
            Self::Plain => "plain",
        }
    }
}

/// Code that is compiled for every pair of instruction set and format.
pub(super) trait Task {
    /// What it gives.
    type Output;
    /// Runs it.
    ///
    /// # Safety
    /// The processor has `I`'s instructions.
    unsafe fn run<I: Isa, F: Format>(self) -> Self::Output;
}

/// Code that is compiled for every instruction set.
pub(super) trait SetTask {
    /// Runs it.
    ///
    /// # Safety
    /// The processor has `I`'s instructions.
    unsafe fn run<I: Isa>(self);
}

macro_rules! compiled_for {
    ($name:ident, $set:ident, $isa:ty, $($feature:literal)?) => {
        /// # Safety
        /// The processor has the features.
        $(#[target_feature(enable = $feature)])?
        unsafe fn $set<T: SetTask>(task: T) {
            // SAFETY: as the caller's.
            unsafe { task.run::<$isa>() }
        }

        /// # Safety
        /// The processor has the features.
        $(#[target_feature(enable = $feature)])?
        unsafe fn $name<T: Task>(weights: Weights, task: T) -> T::Output {
            $(#[target_feature(enable = $feature)])?
            unsafe fn one<F: Format, T: Task>(task: T) -> T::Output {
                // SAFETY: as the caller's.
                unsafe { task.run::<$isa, F>() }
            }
            // SAFETY: as the caller's.
            unsafe {
                match weights {
                    Weights::Q4_0 => one::<format::Q4_0, T>(task),
                    Weights::Q4_1 => one::<format::Q4_1, T>(task),
                    Weights::Q5_0 => one::<format::Q5_0, T>(task),
                    Weights::Q5_1 => one::<format::Q5_1, T>(task),
                    Weights::Q8_0 => one::<format::Q8_0, T>(task),
                    Weights::Q2_K => one::<format::Q2K, T>(task),
                    Weights::Q3_K => one::<format::Q3K, T>(task),
                    Weights::Q4_K => one::<format::Q4K, T>(task),
                    Weights::Q5_K => one::<format::Q5K, T>(task),
                    Weights::Q6_K => one::<format::Q6K, T>(task),
                    Weights::IQ4_NL => one::<format::Iq4Nl, T>(task),
                    Weights::IQ4_XS => one::<format::Iq4Xs, T>(task),
                    Weights::MXFP4 => one::<format::Mxfp4, T>(task),
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
compiled_for!(avx512, avx512_set, Avx512, "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
compiled_for!(avx2_vnni, avx2_vnni_set, Avx2<true>, "avx2,fma,f16c,avxvnni");
#[cfg(target_arch = "x86_64")]
compiled_for!(avx2, avx2_set, Avx2<false>, "avx2,fma,f16c");
#[cfg(target_arch = "aarch64")]
compiled_for!(neon_dotprod, neon_dotprod_set, Neon<true>, "neon,dotprod");
#[cfg(target_arch = "aarch64")]
compiled_for!(neon, neon_set, Neon<false>, "neon");
compiled_for!(plain, plain_set, Plain,);

/// Runs `task` as compiled for `cpu`.
pub(super) fn dispatch_set<T: SetTask>(cpu: Cpu, task: T) {
    // SAFETY: as `dispatch`.
    unsafe {
        match cpu {
            #[cfg(target_arch = "x86_64")]
            Cpu::Avx512 => avx512_set(task),
            #[cfg(target_arch = "x86_64")]
            Cpu::Avx2Vnni => avx2_vnni_set(task),
            #[cfg(target_arch = "x86_64")]
            Cpu::Avx2 => avx2_set(task),
            #[cfg(target_arch = "aarch64")]
            Cpu::NeonDotprod => neon_dotprod_set(task),
            #[cfg(target_arch = "aarch64")]
            Cpu::Neon => neon_set(task),
            Cpu::Plain => plain_set(task),
        }
    }
}

/// Runs `task` as compiled for `cpu` and `weights`.
pub(super) fn dispatch<T: Task>(cpu: Cpu, weights: Weights, task: T) -> T::Output {
    // SAFETY: a `Cpu` is made by `all` alone, for a processor that has the features.
    unsafe {
        match cpu {
            #[cfg(target_arch = "x86_64")]
            Cpu::Avx512 => avx512(weights, task),
            #[cfg(target_arch = "x86_64")]
            Cpu::Avx2Vnni => avx2_vnni(weights, task),
            #[cfg(target_arch = "x86_64")]
            Cpu::Avx2 => avx2(weights, task),
            #[cfg(target_arch = "aarch64")]
            Cpu::NeonDotprod => neon_dotprod(weights, task),
            #[cfg(target_arch = "aarch64")]
            Cpu::Neon => neon(weights, task),
            Cpu::Plain => plain(weights, task),
        }
    }
}
