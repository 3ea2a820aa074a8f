//! Refuses policies whose functions call themselves, directly or around corners, or nest very deeply.
//!
//! Rego forbids recursion, but the engine notices it among rules only: a function that calls itself would use up the stack, and
//! with it end the agent. So the calls between functions are read off the tokens of the rules. Replacing functions by `with`, and
//! importing the package under another name, would make that reading wrong, and no policy needs them: both are refused.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use regorus::unstable::{Lexer, Rule, RuleHead, TokenKind};
use regorus::{Engine, Source};

/// Deepest nesting of calls. Generated policies stay below 10.
const MAX_NESTING: usize = 24;

/// Says what is wrong, if something is.
pub(crate) fn refuse(engine: &mut Engine, rego: &str, max_column: NonZeroU32) -> Result<(), String> {
    let mut rules: BTreeMap<u32, (Option<String>, Vec<String>)> = BTreeMap::new();
    for module in engine.get_modules() {
        if module.imports.iter().any(|import| import.refr.span().text().contains(crate::evaluate::PACKAGE)) {
            return Err(format!("package {} must not import itself", crate::evaluate::PACKAGE));
        }
        for rule in &module.policy {
            let function = match rule.as_ref() {
                Rule::Spec { head: RuleHead::Func { refr, .. }, .. } => Some(last_name(refr.span().text())),
                Rule::Default { refr, args, .. } if !args.is_empty() => Some(last_name(refr.span().text())),
                _ => None,
            };
            rules.insert(rule.span().start, (function, Vec::new()));
        }
    }
    // A rule's tokens are those from its start to the next one's.
    for (at, token) in tokens(rego, max_column)? {
        if let Some((_, (_, tokens))) = rules.range_mut(..=at).next_back() {
            tokens.push(token);
        }
    }
    let functions: BTreeSet<String> = rules.values().filter_map(|(function, _)| function.clone()).collect();
    let mut calls: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (function, tokens) in rules.values() {
        if replaces_functions(tokens, &functions) {
            return Err("functions must not be replaced by `with`".to_owned());
        }
        let Some(function) = function else { continue };
        // The head itself looks like a call, once.
        let mut head = true;
        let called = called(tokens).filter(|name| functions.contains(*name) && !(*name == function && std::mem::take(&mut head)));
        calls.entry(function).or_default().extend(called);
    }
    nesting(&calls)
}

/// The names, strings (behind a quote) and symbols of the text with their offsets, comments left out.
fn tokens(rego: &str, max_column: NonZeroU32) -> Result<Vec<(u32, String)>, String> {
    let source = Source::from_contents("rule".to_owned(), rego.to_owned()).map_err(|e| e.to_string())?;
    let mut lexer = Lexer::new(&source);
    lexer.set_max_col(max_column);
    let mut tokens = Vec::new();
    loop {
        let token = lexer.next_token().map_err(|e| e.to_string())?;
        let text = token.1.text();
        match token.0 {
            TokenKind::Eof => return Ok(tokens),
            TokenKind::Ident | TokenKind::Symbol => tokens.push((token.1.start, text.to_owned())),
            TokenKind::String | TokenKind::RawString => tokens.push((token.1.start, format!("\"{text}"))),
            _ => tokens.push((token.1.start, String::new())),
        }
    }
}

/// What stands before an opening bracket: `f(`, `data.agent_policy.f(`, `data.agent_policy["f"](`.
fn called(tokens: &[String]) -> impl Iterator<Item = &str> {
    tokens.iter().enumerate().filter(|(_, token)| *token == "(").filter_map(|(i, _)| match tokens.get(..i)? {
        [.., name, bracket] if bracket == "]" => name.strip_prefix('"'),
        [.., name] => Some(name.as_str()),
        [] => None,
    })
}

/// Whether a `with` has a function of the policy on either side.
fn replaces_functions(tokens: &[String], functions: &BTreeSet<String>) -> bool {
    let in_path = |token: &&String| matches!(token.as_str(), "." | "[" | "]") || token.starts_with('"') || is_name(token);
    let path = |from: usize| {
        let path = tokens.iter().skip(from).take_while(in_path).take_while(|token| *token != "as" && *token != "with");
        path.map(|token| token.trim_start_matches('"')).any(|name| functions.contains(name))
    };
    tokens.iter().enumerate().any(|(i, token)| (token == "with" || token == "as") && path(i + 1))
}

fn is_name(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn last_name(path: &str) -> String {
    let end = path.rsplit(['.', '[']).next().unwrap_or(path);
    end.trim_matches(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).to_owned()
}

/// Longest chain of calls, by taking away functions that call nothing any more: each round is one level.
fn nesting(calls: &BTreeMap<&str, BTreeSet<&str>>) -> Result<(), String> {
    let mut left = calls.clone();
    for _ in 0..MAX_NESTING {
        let leaves: Vec<&str> = left.iter().filter(|(_, called)| called.is_empty()).map(|(name, _)| *name).collect();
        if left.is_empty() {
            return Ok(());
        }
        if leaves.is_empty() {
            let names: Vec<&str> = left.keys().copied().take(8).collect();
            return Err(format!("functions must not call themselves, also not through others; look among {}", names.join(", ")));
        }
        left.retain(|_, called| !called.is_empty());
        for called in left.values_mut() {
            called.retain(|name| !leaves.contains(name));
        }
    }
    Err(format!("function calls are nested deeper than {MAX_NESTING}"))
}
