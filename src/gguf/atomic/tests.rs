//! Writers that fail at any call of the system, and leftovers of those that were killed.

use super::faults::tests::{fail_at, is_pending};
use super::*;

type Create = fn(&Path, bool) -> Result<AtomicFile>;

fn write(create: Create, target: &Path, replace: bool) -> Result<()> {
    let mut file = create(target, replace)?;
    for piece in [b"new ".as_slice(), b"and ", b"whole"] {
        file.write_all(piece)?;
    }
    let source = Source::from_bytes(b", with a copy".to_vec(), Path::new("memory"));
    file.copy(&source, 0..13, 26, &mut |_, _| true)?;
    file.reopen()?;
    file.commit()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Fails every call in turn, with and without an old file, until a write passes without reaching the
/// failure.
fn fails_cleanly(create: Create) {
    for old in [Some("old"), None] {
        for n in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let target = folder.path().join("model.gguf");
            if let Some(old) = old {
                fs::write(&target, old).unwrap();
            }
            fail_at(Some(n));
            let result = write(create, &target, old.is_some());
            let finished = is_pending();
            fail_at(None);
            let content = fs::read_to_string(&target).ok();
            if finished {
                result.unwrap();
                assert_eq!(content.as_deref(), Some("new and whole, with a copy"));
                assert!(n > 6, "only {n} calls were seen");
                break;
            }
            let error = result.unwrap_err().to_string();
            if error.contains("sync the folder") {
                assert_eq!(content.as_deref(), Some("new and whole, with a copy"));
            } else {
                assert_eq!(content.as_deref(), old, "after the failure of call {n}: {error}");
            }
            assert_eq!(names(folder.path()).len(), usize::from(content.is_some()), "a stray file after call {n}");
        }
    }
}

#[test]
fn a_failure_of_any_call_leaves_the_old_file_and_no_other() {
    fails_cleanly(AtomicFile::create);
}

#[test]
fn the_same_holds_for_named_temporary_files() {
    fails_cleanly(AtomicFile::create_named);
}

#[test]
fn an_existing_file_is_refused_without_replace() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model.gguf");
    for create in [AtomicFile::create as Create, AtomicFile::create_named] {
        fs::write(&target, "old").unwrap();
        assert!(matches!(write(create, &target, false), Err(Error::OutputExists { .. })));
        // Also where it appears while the new one is being written.
        fs::remove_file(&target).unwrap();
        let file = create(&target, false).unwrap();
        fs::write(&target, "old").unwrap();
        assert!(matches!(file.commit(), Err(Error::OutputExists { .. })));
        assert_eq!(fs::read_to_string(&target).unwrap(), "old");
        assert_eq!(names(folder.path()), ["model.gguf"]);
    }
}

#[test]
#[cfg(unix)]
fn leftovers_of_dead_writers_are_removed_and_those_of_living_ones_kept() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model.gguf");
    let living = AtomicFile::create_named(&target, false).unwrap();
    let kept = living.temporary.clone().unwrap();
    fs::write(folder.path().join(".model.gguf.1-0.partial"), "dead").unwrap();
    fs::write(folder.path().join(".other.gguf.1-0.partial"), "not ours").unwrap();
    write(AtomicFile::create, &target, false).unwrap();
    let mut left = names(folder.path());
    left.sort();
    let kept = kept.file_name().unwrap().to_str().unwrap();
    assert_eq!(left, [kept, ".other.gguf.1-0.partial", "model.gguf"]);
}
