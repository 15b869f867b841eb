//! `offramp doctor`, `completions` and `man`: that they tell something on any machine, and in the form they promise.

use crate::support::{TempFolder, offramp, run};

#[test]
fn the_doctor_tells_what_this_machine_is() {
    let home = TempFolder::new("doctor");
    let mut command = offramp(&["doctor"]);
    let output = command.env("HF_HOME", home.path()).env("OFFRAMP_CACHE", home.path()).output().unwrap();
    let told = crate::support::Finished::of(output).success();
    for line in ["build: offramp", "CPU features", "cores: ", "memory: ", "problem: there is no model yet"] {
        assert!(told.contains(line), "{line} is missing:\n{told}");
    }
    let report: serde_json::Value = serde_json::from_str(&run(&["doctor", "--json"]).success()).unwrap();
    assert!(report["threads_to_use"].as_u64() >= Some(1), "{report}");
}

/// A quota of a control group is a number of cores. The groups are made of files in a namespace of the test's own.
#[cfg(target_os = "linux")]
#[test]
fn a_quota_counts_as_cores() {
    let folder = TempFolder::new("quota");
    let groups = folder.path().to_str().unwrap();
    let make = |version: &str| {
        let (group, files) = match version {
            "1" => {
                ("1:cpu:/", "mkdir cpu && echo 150000 > cpu/cpu.cfs_quota_us && echo 100000 > cpu/cpu.cfs_period_us")
            }
            _ => (
                "0::/jobs/one",
                "mkdir -p jobs/one && touch jobs/one/cgroup.controllers && echo 'max 100000' > jobs/one/cpu.max && echo '150000 100000' > jobs/cpu.max",
            ),
        };
        format!(
            "mount -t tmpfs none /sys/fs/cgroup && echo {group} > {groups}/group && mount --bind {groups}/group /proc/$$/cgroup \
             && cd /sys/fs/cgroup && {files} && echo ready >&2 && exec '{}' doctor --json",
            env!("CARGO_BIN_EXE_offramp")
        )
    };
    for version in ["1", "2"] {
        let output = std::process::Command::new("unshare").args(["-m", "sh", "-c", &make(version)]).output();
        let Some(output) = output.ok().filter(|output| String::from_utf8_lossy(&output.stderr).contains("ready"))
        else {
            eprintln!("skipped: no namespace can be made here");
            return;
        };
        let report: serde_json::Value = serde_json::from_str(&crate::support::Finished::of(output).success()).unwrap();
        assert_eq!(report["threads_to_use"], 1, "version {version}: {report}");
    }
}

#[test]
fn shells_and_man_are_served() {
    for (shell, word) in [("bash", "complete"), ("zsh", "#compdef"), ("fish", "complete -c offramp")] {
        assert!(run(&["completions", shell]).success().contains(word), "{shell}");
    }
    assert!(run(&["man"]).success().contains(".TH offramp 1"));
    let folder = TempFolder::new("man");
    run(&["man", folder.path().to_str().unwrap()]).success();
    assert!(folder.path().join("offramp-serve.1").is_file() || !cfg!(feature = "serve"));
    assert!(run(&["completions", "tcsh"]).failure(2).contains("--help"));
}
