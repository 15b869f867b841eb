//! The tools of a chat request, and whether the reply must call one: `tools`, `tool_choice` and `parallel_tool_calls`.
//!
//! Refuses tools that are no functions with names, and choices that no reply could follow.

use offramp::{Forced, ReplyReader, ToolFormat, Tools};
use serde_json::Value;

use super::failure::ApiError;
use super::fields::Fields;

/// Most tools.
const MAX_TOOLS: usize = 256;

/// Tools that a reply may call.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolUse {
    /// All of them, for the template.
    pub all: Vec<Value>,
    /// The names of those that may be called, where not all may.
    allowed: Option<Vec<String>>,
    is_required: bool,
    is_parallel: Option<bool>,
}

impl ToolUse {
    /// `None` where no tool is to be called.
    ///
    /// # Errors
    /// [`ApiError`] with status 400.
    pub fn read(fields: Fields<'_>) -> Result<Option<Self>, ApiError> {
        let all = fields.array("tools", MAX_TOOLS)?.cloned().unwrap_or_default();
        for (i, tool) in all.iter().enumerate() {
            let name = name_of(tool);
            if tool.get("type").and_then(Value::as_str) != Some("function") || name.is_none_or(str::is_empty) {
                let param = format!("tools[{i}]");
                return Err(ApiError::invalid(&param, format!("{param} must be a function with a name")));
            }
        }
        let is_parallel = fields.bool("parallel_tool_calls")?;
        let (is_required, allowed) = match fields.get("tool_choice") {
            None => (false, None),
            Some(Value::String(choice)) => match choice.as_str() {
                "none" => return Ok(None),
                "auto" => (false, None),
                "required" => (true, None),
                _ => return Err(wrong()),
            },
            Some(choice) => match choice.get("type").and_then(Value::as_str) {
                Some("function") => (true, Some(vec![name_of(choice).ok_or_else(wrong)?.to_owned()])),
                Some("allowed_tools") => {
                    let allowed = choice.get("allowed_tools").unwrap_or(choice);
                    let is_required = match allowed.get("mode").and_then(Value::as_str) {
                        Some("required") => true,
                        None | Some("auto") => false,
                        Some(_) => return Err(wrong()),
                    };
                    let names = allowed.get("tools").and_then(Value::as_array).ok_or_else(wrong)?;
                    let names = names.iter().map(|tool| name_of(tool).map(str::to_owned));
                    (is_required, Some(names.collect::<Option<Vec<_>>>().ok_or_else(wrong)?))
                }
                _ => return Err(wrong()),
            },
        };
        let is_offered = |name: &String| all.iter().any(|tool| name_of(tool) == Some(name));
        if let Some(name) = allowed.iter().flatten().find(|name| !is_offered(name)) {
            let message = format!("tool_choice names the function {name:?}, which is not among tools");
            return Err(ApiError::invalid("tool_choice", message));
        }
        if is_required && all.is_empty() {
            return Err(ApiError::invalid("tool_choice", "tool_choice asks for a call, but there are no tools"));
        }
        Ok((!all.is_empty()).then_some(Self { all, allowed, is_required, is_parallel }))
    }

    /// What makes the reply calls, if it must be.
    pub fn forced(&self, format: ToolFormat) -> Option<Forced> {
        let is_allowed = |tool: &&Value| {
            let name = name_of(tool).unwrap_or_default();
            self.allowed.as_ref().is_none_or(|allowed| allowed.iter().any(|known| known == name))
        };
        let tools: Vec<Value> = self.all.iter().filter(is_allowed).cloned().collect();
        let is_several = self.is_parallel == Some(true);
        self.is_required.then(|| Forced::new(format, &tools, is_several)).flatten()
    }

    /// What reads the reply.
    pub fn reader(&self, format: ToolFormat, forced: Option<&Forced>) -> ReplyReader {
        let tools = Tools::new(&self.all);
        let reader = match forced {
            Some(forced) => ReplyReader::of_forced(forced, tools),
            None => ReplyReader::new(format, tools),
        };
        if self.is_parallel == Some(false) { reader.at_most(1) } else { reader }
    }
}

/// The name of a function, in OpenAI's older shape or its newer one.
fn name_of(tool: &Value) -> Option<&str> {
    tool.get("function").unwrap_or(tool).get("name")?.as_str()
}

fn wrong() -> ApiError {
    let message = "tool_choice must be auto, none, required, or a function that is named: \
                   {\"type\": \"function\", \"function\": {\"name\": …}}";
    ApiError::invalid("tool_choice", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(choice: Value) -> Result<Option<ToolUse>, ApiError> {
        let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
        let body = json!({"tools": [tool("f"), tool("g")], "tool_choice": choice});
        ToolUse::read(Fields::of(&body).unwrap())
    }

    #[test]
    fn a_choice_says_whether_and_what_is_called() {
        let forced = |choice: Value| read(choice).unwrap().unwrap().forced(ToolFormat::Hermes);
        assert!(read(json!("none")).unwrap().is_none());
        assert!(forced(json!(null)).is_none() && forced(json!("auto")).is_none());
        assert_eq!(forced(json!("required")).unwrap().function(), None);
        for named in [
            json!({"type": "function", "function": {"name": "g"}}),
            json!({"type": "function", "name": "g"}),
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]}}),
        ] {
            assert_eq!(forced(named).unwrap().function(), Some("g"));
        }
    }

    #[test]
    fn what_no_reply_could_follow_is_refused() {
        for wrong in [
            json!("g"),
            json!(1),
            json!({}),
            json!({"type": "function"}),
            json!({"type": "function", "function": {"name": "h"}}),
            json!({"type": "custom", "custom": {"name": "g"}}),
        ] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
        let body = json!({"tool_choice": "required"});
        assert!(ToolUse::read(Fields::of(&body).unwrap()).is_err());
        let body = json!({"tools": [{"type": "function", "function": {}}]});
        assert!(ToolUse::read(Fields::of(&body).unwrap()).is_err());
    }
}
