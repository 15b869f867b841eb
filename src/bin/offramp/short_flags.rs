//! llama.cpp's short flags of several letters (`-ngl 99`), which getopt-style parsers read as several flags of one letter (`-n -g -l`).
//! They are spelled out before clap sees them. Values are never touched.

use std::ffi::OsString;

/// llama.cpp's flag, and ours.
const SPELLED_OUT: &[(&str, &str)] = &[
    ("-ngl", "--gpu-layers"),
    ("-tb", "--threads-batch"),
    ("-ub", "--ubatch-size"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-sys", "--system-prompt"),
    ("-sysf", "--system-prompt-file"),
    ("-jf", "--json-schema-file"),
    ("-fa", "--flash-attn"),
    ("-st", "--single-turn"),
    ("-np", "--parallel"),
    ("-hf", "--hf-repo"),
    ("-hfr", "--hf-repo"),
];

/// Flags whose value is free text, which may look like a flag.
const TAKES_TEXT: &[&str] =
    &["-p", "--prompt", "-sys", "--system-prompt", "--grammar", "--stop", "--dry-sequence-breaker"];

/// Spells llama.cpp's short flags out, in `arguments` after the program's name, up to `--`.
pub fn spell_out(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments = arguments.into_iter();
    let mut spelled = Vec::new();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            spelled.push(argument);
            break;
        }
        let is_text_next = TAKES_TEXT.iter().any(|flag| argument == *flag);
        spelled.push(spell_one_out(argument));
        if is_text_next {
            spelled.extend(arguments.next());
        }
    }
    spelled.extend(arguments);
    spelled
}

fn spell_one_out(argument: OsString) -> OsString {
    let Some(text) = argument.to_str() else { return argument };
    let (flag, value) = text.split_once('=').map_or((text, None), |(flag, value)| (flag, Some(value)));
    match (SPELLED_OUT.iter().find(|(short, _)| *short == flag), value) {
        (Some((_, long)), Some(value)) => format!("{long}={value}").into(),
        (Some((_, long)), None) => (*long).into(),
        (None, _) => argument,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(arguments: &[&str]) -> Vec<String> {
        let spelled = spell_out(arguments.iter().map(OsString::from));
        spelled.into_iter().map(|argument| argument.into_string().unwrap()).collect()
    }

    #[test]
    fn each_short_flag_is_spelled_out() {
        for (short, long) in SPELLED_OUT {
            assert_eq!(spelled(&[short, "1"]), [*long, "1"]);
            assert_eq!(spelled(&[&format!("{short}=1")]), [format!("{long}=1")]);
        }
    }

    #[test]
    fn other_arguments_stay() {
        let same = ["run", "-n", "8", "--temp", "0", "-p", "x", "-vvv", "-nglx", "ngl"];
        assert_eq!(spelled(&same), same);
    }

    #[test]
    fn a_prompt_that_looks_like_a_flag_stays() {
        assert_eq!(spelled(&["-p", "-ngl", "-ngl", "1"]), ["-p", "-ngl", "--gpu-layers", "1"]);
        assert_eq!(spelled(&["-sys", "-fa"]), ["--system-prompt", "-fa"]);
    }

    #[test]
    fn nothing_is_touched_after_two_dashes() {
        assert_eq!(spelled(&["--", "-ngl"]), ["--", "-ngl"]);
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_no_unicode_stay() {
        use std::os::unix::ffi::OsStringExt;
        let name = OsString::from_vec(b"\xFF.gguf".to_vec());
        assert_eq!(spell_out([OsString::from("-m"), name.clone()]), [OsString::from("-m"), name]);
    }
}
