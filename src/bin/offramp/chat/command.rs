//! The slash commands of a chat: how they are read, what the help says, and what the editor completes.

use std::path::PathBuf;

/// What a line asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// A turn for the model.
    Turn(String),
    Command(Command),
    /// A turn of one word that looks like a command and is none.
    Unknown(String),
    /// A command with wrong arguments; the text says what is wrong.
    Wrong(String),
}

/// A command with its arguments.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    Help,
    Exit,
    Clear,
    Regenerate,
    Undo,
    System(String),
    /// A setting's name and value; without them, all are shown.
    Set(Option<(String, String)>),
    Show(Shown),
    Read(PathBuf),
    Save(PathBuf),
    Load(PathBuf),
    Stats,
    Context,
    /// A mode or a share; without one, what is set.
    Exits(Option<String>),
    ExitsShow,
}

/// What `/show` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    Settings,
    System,
    Model,
    Template,
}

/// Name, arguments, and what it does.
const COMMANDS: &[(&str, &str, &str)] = &[
    ("/help", "", "show this"),
    ("/exit", "", "leave (or /bye, or Ctrl-D)"),
    ("/clear", "", "start a new conversation"),
    ("/regen", "", "make the last reply again"),
    ("/undo", "", "take the last turn and reply back"),
    ("/system", "[TEXT]", "set the system prompt, or remove it"),
    ("/set", "[NAME VALUE]", "change a setting, or show all"),
    ("/show", "system|model|template|settings", "show what is set"),
    ("/read", "FILE", "put a file before your next message"),
    ("/save", "FILE", "save the chat, cache included"),
    ("/load", "FILE", "go on with a saved one"),
    ("/stats", "", "figures of the last reply and chat"),
    ("/context", "", "show how full the context is"),
    ("/exits", "[off|calibrated|exact|SHARE|show]", "set, or show, how tokens leave early"),
];

/// Other names of commands.
const ALIASES: &[(&str, &str)] =
    &[("/?", "/help"), ("/bye", "/exit"), ("/quit", "/exit"), ("/new", "/clear"), ("/regenerate", "/regen")];

/// Names that `/set` knows; the flags' own.
pub const SETTINGS: &[&str] = &[
    "temp",
    "top-k",
    "typical",
    "top-p",
    "min-p",
    "repeat-penalty",
    "repeat-last-n",
    "frequency-penalty",
    "presence-penalty",
    "dry-multiplier",
    "dry-base",
    "dry-allowed-length",
    "dry-penalty-last-n",
    "xtc-probability",
    "xtc-threshold",
    "seed",
    "predict",
];

impl Line {
    /// Reads a line. Names of commands alone are commands: a path such as `/etc/hosts` is part of a turn, and so is what
    /// stands after `//`, with one slash.
    pub fn read(line: &str) -> Self {
        let text = line.trim();
        let escaped = line.trim_start().strip_prefix("//");
        if let Some(rest) = escaped.filter(|rest| rest.starts_with(|c: char| !c.is_whitespace())) {
            return Self::Turn(format!("/{rest}"));
        }
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        let name = ALIASES.iter().find(|(alias, _)| *alias == word).map_or(word, |(_, name)| *name);
        let Some((_, arguments, _)) = COMMANDS.iter().find(|(known, ..)| *known == name) else {
            let name = text.strip_prefix('/').unwrap_or_default();
            let is_like_one = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase());
            return if is_like_one { Self::Unknown(text.to_owned()) } else { Self::Turn(line.to_owned()) };
        };
        match Command::read(name, rest) {
            Some(command) => Self::Command(command),
            None if arguments.is_empty() => {
                Self::Wrong(format!("{word} takes nothing after it; /{word} sends the line to the model"))
            }
            None => Self::Wrong(format!("it goes {word} {arguments}; /{word} sends the line to the model")),
        }
    }
}

impl Command {
    fn read(name: &str, rest: &str) -> Option<Self> {
        let file = || (!rest.is_empty()).then(|| PathBuf::from(rest.trim_matches('"')));
        match name {
            "/system" => Some(Self::System(rest.to_owned())),
            "/set" if rest.is_empty() => Some(Self::Set(None)),
            "/set" => {
                let (name, value) = rest.split_once(char::is_whitespace)?;
                Some(Self::Set(Some((name.to_owned(), value.trim().to_owned()))))
            }
            "/show" => match rest {
                "" | "settings" => Some(Self::Show(Shown::Settings)),
                "system" => Some(Self::Show(Shown::System)),
                "model" => Some(Self::Show(Shown::Model)),
                "template" => Some(Self::Show(Shown::Template)),
                _ => None,
            },
            "/read" => file().map(Self::Read),
            "/save" => file().map(Self::Save),
            "/load" => file().map(Self::Load),
            "/exits" if rest == "show" => Some(Self::ExitsShow),
            "/exits" => Some(Self::Exits((!rest.is_empty()).then(|| rest.to_owned()))),
            _ if !rest.is_empty() => None,
            "/help" => Some(Self::Help),
            "/exit" => Some(Self::Exit),
            "/clear" => Some(Self::Clear),
            "/regen" => Some(Self::Regenerate),
            "/undo" => Some(Self::Undo),
            "/stats" => Some(Self::Stats),
            "/context" => Some(Self::Context),
            _ => None,
        }
    }
}

/// What `/help` prints.
pub fn help() -> String {
    let mut text = String::new();
    for (name, arguments, what) in COMMANDS {
        text.push_str(&format!("{:<41} {what}\n", format!("{name} {arguments}")));
    }
    text + "A line that begins with // is a message that begins with /.\n\
            Lines between \"\"\" and \"\"\" are one message. Tab completes commands and files.\n\
            Ctrl-C stops a reply and keeps what there is of it; two at the prompt leave."
}

/// What could stand in place of the last word of `line`: each with what it does, where that is known.
pub fn completions(line: &str) -> Vec<(String, Option<&'static str>)> {
    let Some((name, rest)) = line.split_once(char::is_whitespace).map(|(name, rest)| (name, rest.trim_start())) else {
        let known = COMMANDS.iter().filter(|(name, ..)| line.starts_with('/') && name.starts_with(line));
        return known.map(|(name, _, what)| ((*name).to_owned(), Some(*what))).collect();
    };
    let among = |words: &[&str]| {
        words.iter().filter(|word| word.starts_with(rest)).map(|word| ((*word).to_owned(), None)).collect()
    };
    match name {
        "/set" => among(SETTINGS),
        "/show" => among(&["settings", "system", "model", "template"]),
        "/exits" => among(&["off", "calibrated", "exact", "show"]),
        "/read" | "/save" | "/load" => files(rest).into_iter().map(|file| (file, None)).collect(),
        _ => Vec::new(),
    }
}

/// Files whose path begins with `start`; folders end with a slash.
fn files(start: &str) -> Vec<String> {
    let (folder, name) = start.rsplit_once('/').map_or(("", start), |(folder, name)| (&start[..=folder.len()], name));
    let Ok(entries) = std::fs::read_dir(if folder.is_empty() { "." } else { folder }) else { return Vec::new() };
    let mut found: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let found = entry.file_name().into_string().ok()?;
            let is_hidden = found.starts_with('.') && !name.starts_with('.');
            let end = if entry.path().is_dir() { "/" } else { "" };
            (found.starts_with(name) && !is_hidden).then(|| format!("{folder}{found}{end}"))
        })
        .collect();
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_turns() {
        assert_eq!(Line::read("/bye"), Line::Command(Command::Exit));
        assert_eq!(Line::read(" /exits 0.95 "), Line::Command(Command::Exits(Some("0.95".to_owned()))));
        assert_eq!(Line::read("/system be kind"), Line::Command(Command::System("be kind".to_owned())));
        assert_eq!(
            Line::read("/set temp 0.5"),
            Line::Command(Command::Set(Some(("temp".to_owned(), "0.5".to_owned()))))
        );
        assert_eq!(Line::read("/read \"a b.txt\""), Line::Command(Command::Read("a b.txt".into())));
        for turn in [
            "hello",
            "/etc/hosts is a file",
            "/tmp is full, what can I do?",
            "/etc/hosts",
            "/r/rust",
            "/nothing there",
            "/helpful people",
            "/HELP",
            "/help!",
            "/",
            "/ 5",
            "/Users are people",
            "// comment",
            "//",
        ] {
            assert_eq!(Line::read(turn), Line::Turn(turn.to_owned()));
        }
    }

    #[test]
    fn two_slashes_send_what_would_be_a_command() {
        for (line, turn) in [
            ("//help", "/help"),
            ("  //clear the table", "/clear the table"),
            ("//tmp is full", "/tmp is full"),
            ("///etc", "//etc"),
            ("//?", "/?"),
        ] {
            assert_eq!(Line::read(line), Line::Turn(turn.to_owned()));
        }
    }

    #[test]
    fn one_word_that_looks_like_a_command_is_sent_and_told() {
        for line in ["/nothing", "/hlep", "/tmp"] {
            assert_eq!(Line::read(&format!(" {line} ")), Line::Unknown(line.to_owned()));
        }
    }

    #[test]
    fn a_command_with_wrong_arguments_says_how_it_goes() {
        for (line, word) in [
            ("/undo it", "nothing after it"),
            ("/new ideas", "//new sends"),
            ("/read", "FILE"),
            ("/set temp", "NAME VALUE"),
        ] {
            assert!(matches!(Line::read(line), Line::Wrong(reason) if reason.contains(word)), "{line}");
        }
    }

    #[test]
    fn every_command_is_read_and_completed() {
        for (name, arguments, _) in COMMANDS {
            let line = if arguments.starts_with("FILE") { format!("{name} x") } else { (*name).to_owned() };
            assert!(matches!(Line::read(&line), Line::Command(_)), "{line}");
            assert_eq!(completions(name)[0].0, *name);
        }
        let names: Vec<String> = completions("/set top").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["top-k", "top-p"]);
        assert!(completions("hello").is_empty());
        assert_eq!(completions("/set  te"), completions("/set te"), "blanks between do no harm");
    }

    #[test]
    fn the_help_fits_on_a_narrow_terminal() {
        for line in help().lines() {
            assert!(line.chars().count() < 80, "{line}");
        }
    }

    #[test]
    fn files_are_completed_with_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("notes.txt"), "").unwrap();
        std::fs::create_dir(folder.path().join("nothing")).unwrap();
        let start = format!("{}/no", folder.path().display());
        let found: Vec<String> = completions(&format!("/read {start}")).into_iter().map(|(text, _)| text).collect();
        assert_eq!(found, [format!("{start}tes.txt"), format!("{start}thing/")]);
    }
}
