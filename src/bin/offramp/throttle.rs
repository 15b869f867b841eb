//! What makes a small machine slower than it could be: its governor, its heat, its power supply. Read from Linux's `/sys`;
//! where nothing is there, nothing is said.

use std::fs;
use std::path::Path;

/// Degrees Celsius from which the processors of small machines slow down.
const HOT: f64 = 80.0;
/// Drivers whose governor `powersave` follows the load.
const FOLLOW_THE_LOAD: [&str; 3] = ["intel_pstate", "amd-pstate", "amd-pstate-epp"];

/// What is wrong, each with what to do about it; `sys` is `/sys`.
pub fn problems(sys: &Path) -> Vec<String> {
    [governor(sys), heat(sys), firmware(sys)].into_iter().flatten().collect()
}

fn governor(sys: &Path) -> Option<String> {
    let folder = sys.join("devices/system/cpu/cpu0/cpufreq");
    let driver = text(&folder.join("scaling_driver")).unwrap_or_default();
    (text(&folder.join("scaling_governor"))? == "powersave" && !FOLLOW_THE_LOAD.contains(&driver.as_str())).then(|| {
        "the governor 'powersave' holds the processors at their lowest frequency: take 'ondemand' or 'performance', \
         for example with cpupower frequency-set -g ondemand"
            .to_owned()
    })
}

fn heat(sys: &Path) -> Option<String> {
    let zones = entries(&sys.join("class/thermal"), "thermal_zone");
    let degrees = zones.iter().filter_map(|zone| Some(text(&zone.join("temp"))?.parse::<f64>().ok()? / 1000.0));
    let hottest = degrees.reduce(f64::max).filter(|degrees| (HOT..200.0).contains(degrees))?;
    Some(format!("the machine is at {hottest:.0} °C and may slow itself down: cool it, or use fewer threads with -t"))
}

/// What a Raspberry Pi's firmware tells of its supply: bit 0 too little voltage, bits 1 to 3 slowed down, and the same from
/// bit 16 on for what has happened since it was started.
fn firmware(sys: &Path) -> Option<String> {
    let chips = entries(&sys.join("devices/platform"), "soc");
    let parts = chips.iter().flat_map(|chip| entries(chip, "soc"));
    let bits = parts.filter_map(|part| u32::from_str_radix(&text(&part.join("get_throttled"))?, 16).ok()).next()?;
    let told = [
        (0b1, "the supply gives too little voltage now: take a stronger one and a shorter cable"),
        (0b1110, "the firmware slows the processors down now: cool them"),
        (0b1 << 16, "the supply gave too little voltage since the machine was started: a stronger one helps"),
        (0b1110 << 16, "the firmware slowed the processors down since the machine was started: cooling helps"),
    ];
    told.iter().find(|(mask, _)| bits & mask != 0).map(|(_, what)| (*what).to_owned())
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Folders of `folder` whose names begin so.
fn entries(folder: &Path, start: &str) -> Vec<std::path::PathBuf> {
    let read = fs::read_dir(folder).into_iter().flatten().flatten();
    let found = read.filter(|entry| entry.file_name().to_string_lossy().starts_with(start));
    found.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `/sys` with these files.
    fn sys(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn a_machine_that_tells_nothing_has_no_problem() {
        assert_eq!(problems(sys(&[]).path()), Vec::<String>::new());
        assert_eq!(problems(Path::new("/no/such/folder")), Vec::<String>::new());
    }

    #[test]
    fn a_hot_board_on_a_weak_supply_is_told_what_to_do() {
        let folder = sys(&[
            ("devices/system/cpu/cpu0/cpufreq/scaling_driver", "cpufreq-dt\n"),
            ("devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n"),
            ("class/thermal/thermal_zone0/temp", "83200\n"),
            ("class/thermal/thermal_zone1/temp", "41000\n"),
            ("devices/platform/soc/soc:firmware/get_throttled", "50005\n"),
        ]);
        let found = problems(folder.path());
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("ondemand") && found[1].contains("83 °C") && found[2].contains("voltage now"));
    }

    #[test]
    fn what_has_passed_is_told_as_past() {
        let throttled = |bits: &str| {
            let folder = sys(&[("devices/platform/soc@1/soc@1:firmware/get_throttled", bits)]);
            problems(folder.path()).concat()
        };
        assert!(throttled("50000").contains("voltage since"));
        assert!(throttled("80000").contains("slowed the processors down since"));
        assert!(throttled("8").contains("slows the processors down now"));
        assert_eq!(throttled("0"), "");
    }

    #[test]
    fn a_governor_that_follows_the_load_is_none() {
        let folder = sys(&[
            ("devices/system/cpu/cpu0/cpufreq/scaling_driver", "intel_pstate"),
            ("devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave"),
        ]);
        assert!(problems(folder.path()).is_empty());
    }
}
