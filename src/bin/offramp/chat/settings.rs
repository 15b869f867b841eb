//! What `/set` changes, under the names of the flags.

use crate::conversation::Settings;
use crate::failure::Failure;
use crate::modes::Modes;

/// llama.cpp's other number for a random seed, and more than any other count can be.
const MOST: i64 = 0xFFFF_FFFF;

/// Sets one setting.
///
/// # Errors
/// For a name that is none, and for a value that is no number or outside of its range.
pub fn set(settings: &mut Settings, name: &str, value: &str) -> Result<(), Failure> {
    let number =
        || value.parse::<f32>().map_err(|_| Failure::usage(format!("{name} is {value:?}, but must be a number")));
    let count = |least: i64| {
        let count = value.parse::<i64>().ok().filter(|count| (least..=MOST).contains(count));
        count.ok_or_else(|| {
            Failure::usage(format!("{name} is {value:?}, but must be an integer from {least} to {MOST}"))
        })
    };
    let small = |count: i64| i32::try_from(count).unwrap_or(i32::MAX);
    let mut sampler = settings.sampler.clone();
    match name {
        "temp" | "temperature" => sampler.temperature = number()?,
        "top-k" => sampler.top_k = small(count(-1)?),
        "typical" | "typical-p" => sampler.typical_p = number()?,
        "top-p" => sampler.top_p = number()?,
        "min-p" => sampler.min_p = number()?,
        "repeat-penalty" => sampler.repeat_penalty = number()?,
        "repeat-last-n" => sampler.repeat_last_n = small(count(-1)?),
        "frequency-penalty" => sampler.frequency_penalty = number()?,
        "presence-penalty" => sampler.presence_penalty = number()?,
        "dry-multiplier" => sampler.dry_multiplier = number()?,
        "dry-base" => sampler.dry_base = number()?,
        "dry-allowed-length" => sampler.dry_allowed_length = small(count(0)?),
        "dry-penalty-last-n" => sampler.dry_penalty_last_n = small(count(-1)?),
        "xtc-probability" => sampler.xtc_probability = number()?,
        "xtc-threshold" => sampler.xtc_threshold = number()?,
        "seed" => sampler.seed = u32::try_from(count(-1)?).ok().filter(|&seed| seed != u32::MAX),
        "predict" | "n-predict" => {
            settings.limits.max_tokens = usize::try_from(count(-1)?).unwrap_or(usize::MAX);
            return Ok(());
        }
        _ => {
            let known = super::command::SETTINGS.join(", ");
            return Err(Failure::usage(format!("there is no setting {name}; there are {known}")));
        }
    }
    sampler.check()?;
    settings.sampler = sampler;
    Ok(())
}

/// All settings, a line each.
pub fn text(settings: &Settings, modes: Modes) -> String {
    let sampler = &settings.sampler;
    let seed = sampler.seed.map_or_else(|| "-1 (a new one each time)".to_owned(), |seed| seed.to_string());
    let predict = match settings.limits.max_tokens {
        usize::MAX => "-1 (as many as fit)".to_owned(),
        n => n.to_string(),
    };
    let rows: [(&str, String); 18] = [
        ("temp", sampler.temperature.to_string()),
        ("top-k", sampler.top_k.to_string()),
        ("typical", sampler.typical_p.to_string()),
        ("top-p", sampler.top_p.to_string()),
        ("min-p", sampler.min_p.to_string()),
        ("repeat-penalty", sampler.repeat_penalty.to_string()),
        ("repeat-last-n", sampler.repeat_last_n.to_string()),
        ("frequency-penalty", sampler.frequency_penalty.to_string()),
        ("presence-penalty", sampler.presence_penalty.to_string()),
        ("dry-multiplier", sampler.dry_multiplier.to_string()),
        ("dry-base", sampler.dry_base.to_string()),
        ("dry-allowed-length", sampler.dry_allowed_length.to_string()),
        ("dry-penalty-last-n", sampler.dry_penalty_last_n.to_string()),
        ("xtc-probability", sampler.xtc_probability.to_string()),
        ("xtc-threshold", sampler.xtc_threshold.to_string()),
        ("seed", seed),
        ("predict", predict),
        ("exits", modes.to_string()),
    ];
    rows.iter().map(|(name, value)| format!("{name:<18} {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use offramp::{Exits, GenerateParams, SamplerParams};

    fn settings() -> Settings {
        Settings { sampler: SamplerParams::default(), limits: GenerateParams::default(), system: None }
    }

    #[test]
    fn every_setting_can_be_set_and_is_shown() {
        let mut settings = settings();
        for name in super::super::command::SETTINGS {
            set(&mut settings, name, "1").unwrap();
        }
        assert_eq!((settings.sampler.seed, settings.limits.max_tokens), (Some(1), 1));
        let modes = Modes { exits: Exits::Off, agreement: 0.9 };
        let shown = text(&settings, modes);
        assert!(super::super::command::SETTINGS.iter().all(|name| shown.contains(name)), "{shown}");
        for alias in ["temperature", "n-predict"] {
            set(&mut settings, alias, "2").unwrap();
        }
        assert_eq!((settings.sampler.temperature, settings.limits.max_tokens), (2.0, 2));
        set(&mut settings, "seed", "-1").unwrap();
        assert_eq!(settings.sampler.seed, None);
        set(&mut settings, "seed", "5").unwrap();
        set(&mut settings, "seed", "4294967295").unwrap();
        assert_eq!(settings.sampler.seed, None);
        for name in ["top-k", "repeat-last-n", "dry-penalty-last-n"] {
            set(&mut settings, name, "-1").unwrap();
        }
        assert_eq!((settings.sampler.top_k, settings.sampler.repeat_last_n), (-1, -1));
    }

    #[test]
    fn what_means_nothing_changes_nothing() {
        let mut changed = settings();
        for (name, value) in
            [("temp", "-1"), ("temp", "hot"), ("top-p", "2"), ("top-k", "1.5"), ("predict", "-2"), ("heat", "1")]
        {
            assert!(set(&mut changed, name, value).is_err(), "{name} {value}");
        }
        assert_eq!(changed.sampler, settings().sampler);
    }
}
