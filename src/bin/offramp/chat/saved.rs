//! A conversation on disk: FILE holds the session (its tokens and K/V), FILE.json the messages, as a chat template needs
//! them. With the messages alone a conversation can be gone on with too; its text is then read again.

use std::path::{Path, PathBuf};

use offramp::Message;
use serde::{Deserialize, Serialize};

use crate::conversation::Conversation;
use crate::failure::Failure;

/// The longest file of messages that is read, in bytes.
const MAX_BYTES: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
struct Saved {
    format: String,
    model: String,
    messages: Vec<Turn>,
}

#[derive(Serialize, Deserialize)]
struct Turn {
    role: String,
    content: String,
}

const FORMAT: &str = "offramp chat 1";

/// Saves the conversation. Nothing is left half written: the messages come last, and stand for the whole.
///
/// # Errors
/// When a file cannot be written.
pub fn save(conversation: &mut Conversation, path: &Path) -> Result<(), Failure> {
    let messages = conversation.messages().into_iter();
    let messages = messages.map(|message| Turn { role: message.role, content: message.content });
    let info = conversation.session().model().info();
    let saved = Saved {
        format: FORMAT.to_owned(),
        model: info.name.clone().unwrap_or_else(|| info.description.clone()),
        messages: messages.collect(),
    };
    let text = serde_json::to_vec_pretty(&saved).map_err(Failure::failed)?;
    if !conversation.session().tokens().is_empty() {
        conversation.session_mut().save(path)?;
    }
    write_private(&json_of(path), &text)
}

/// Makes a saved conversation the present one. True if its cache came with it.
///
/// # Errors
/// When the files are not there, are no conversation, or belong to another model; nothing has changed then.
pub fn load(conversation: &mut Conversation, path: &Path) -> Result<bool, Failure> {
    let json = json_of(path);
    let wrong = |reason: String| Failure::failed(format!("cannot load {}: {reason}", json.display()));
    let size = std::fs::metadata(&json).map_err(|error| wrong(error.to_string()))?.len();
    if size > MAX_BYTES {
        return Err(wrong(format!("it has {size} bytes, at most {MAX_BYTES} are expected")));
    }
    let bytes = std::fs::read(&json).map_err(|error| wrong(error.to_string()))?;
    let saved: Saved = serde_json::from_slice(bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes))
        .map_err(|error| wrong(format!("it is no saved chat ({error})")))?;
    if saved.format != FORMAT {
        return Err(wrong(format!("its format is {:?}, {FORMAT:?} is expected", saved.format)));
    }
    let has_cache = path.is_file();
    if has_cache {
        conversation.session_mut().load(path)?;
    }
    conversation.replace(saved.messages.into_iter().map(|turn| Message::new(turn.role, turn.content)).collect());
    Ok(has_cache)
}

fn json_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".json");
    name.into()
}

/// Writes a file that nobody else may read, whole or not at all.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    use std::io::Write;
    let cannot = |error: std::io::Error| Failure::failed(format!("cannot write {}: {error}", path.display()));
    let mut beside = path.as_os_str().to_owned();
    beside.push(".partial");
    let mut options = std::fs::OpenOptions::new();
    options.create(true).write(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&beside).map_err(cannot)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(cannot)?;
    std::fs::rename(&beside, path).map_err(cannot)
}
