//! The `${{ }}` expressions of GitHub Actions, as far as this repository uses them. What this does
//! not know fails the test that comes across it.

use serde_json::Value;

/// What an expression can look at: contexts by name, and what the functions tell.
pub struct Scope<'a> {
    /// `inputs`, `steps` and so on; a name that is not there is a mistake.
    pub contexts: &'a Value,
    /// What has become of the job so far: `success`, `failure` or `cancelled`.
    pub status: &'a str,
}

impl Scope<'_> {
    /// A text with expressions in it, put in.
    pub fn text(&self, template: &str) -> String {
        let mut out = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once("${{") {
            let (expression, behind) = after.split_once("}}").expect("an expression ends");
            out.push_str(before);
            out.push_str(&words(&self.value(expression)));
            rest = behind;
        }
        out + rest
    }

    /// Whether a step runs. Without a function that looks at the status, only after success.
    pub fn condition(&self, condition: Option<&str>) -> bool {
        let Some(condition) = condition else { return self.status == "success" };
        let expression = condition.trim().trim_start_matches("${{").trim_end_matches("}}");
        let looks = ["always(", "success(", "failure(", "cancelled("];
        let allowed =
            looks.iter().any(|name| expression.contains(name)) || self.status == "success";
        allowed && truth(&self.value(expression))
    }

    /// The value of one expression.
    pub fn value(&self, expression: &str) -> Value {
        let tokens = tokens(expression);
        let mut parser = Parser { scope: self, tokens: &tokens, at: 0, expression };
        let value = parser.or();
        assert_eq!(parser.at, tokens.len(), "{expression}: something is left over");
        value
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Text(String),
    Number(f64),
    /// A name, or names with dots between.
    Name(String),
    Sign(&'static str),
}

fn tokens(expression: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = expression.trim_start();
    while let Some(first) = rest.chars().next() {
        let signs = ["==", "!=", "&&", "||", "!", "(", ")", ","];
        let sign = signs.iter().find(|sign| rest.starts_with(**sign));
        let length = if let Some(sign) = sign {
            tokens.push(Token::Sign(sign));
            sign.len()
        } else if first == '\'' {
            let end = rest[1..].find('\'').expect("a string ends") + 1;
            assert!(!rest[end + 1..].starts_with('\''), "{expression}: a quote in a string");
            tokens.push(Token::Text(rest[1..end].to_owned()));
            end + 1
        } else {
            let is_part = |letter: char| letter.is_ascii_alphanumeric() || "_-.".contains(letter);
            let end = rest.find(|letter| !is_part(letter)).unwrap_or(rest.len());
            assert!(end > 0, "{expression}: {first} is not known here");
            let word = &rest[..end];
            tokens.push(word.parse().map_or_else(|_| Token::Name(word.to_owned()), Token::Number));
            end
        };
        rest = rest[length..].trim_start();
    }
    tokens
}

struct Parser<'a> {
    scope: &'a Scope<'a>,
    tokens: &'a [Token],
    at: usize,
    expression: &'a str,
}

impl Parser<'_> {
    fn take(&mut self, sign: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Sign(it)) if *it == sign);
        self.at += usize::from(found);
        found
    }

    fn or(&mut self) -> Value {
        let mut left = self.and();
        while self.take("||") {
            let right = self.and();
            left = if truth(&left) { left } else { right };
        }
        left
    }

    fn and(&mut self) -> Value {
        let mut left = self.compare();
        while self.take("&&") {
            let right = self.compare();
            left = if truth(&left) { right } else { left };
        }
        left
    }

    fn compare(&mut self) -> Value {
        let left = self.unary();
        if self.take("==") {
            return equal(&left, &self.unary()).into();
        }
        if self.take("!=") {
            return (!equal(&left, &self.unary())).into();
        }
        left
    }

    fn unary(&mut self) -> Value {
        if self.take("!") {
            return (!truth(&self.unary())).into();
        }
        if self.take("(") {
            let value = self.or();
            assert!(self.take(")"), "{}: a bracket stays open", self.expression);
            return value;
        }
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        match token {
            Some(Token::Text(text)) => text.into(),
            Some(Token::Number(number)) => number.into(),
            Some(Token::Name(name)) if self.take("(") => {
                let mut arguments = Vec::new();
                while !self.take(")") {
                    arguments.push(self.or());
                    self.take(",");
                }
                self.call(&name, &arguments)
            }
            Some(Token::Name(name)) => self.look_up(&name),
            other => panic!("{}: {other:?}", self.expression),
        }
    }

    fn call(&self, name: &str, arguments: &[Value]) -> Value {
        let status = self.scope.status;
        match (name, arguments) {
            ("always", []) => true.into(),
            ("success", []) => (status == "success").into(),
            ("failure", []) => (status == "failure").into(),
            ("cancelled", []) => (status == "cancelled").into(),
            // That it depends on the files is GitHub's; that they are named is ours.
            ("hashFiles", [_, ..]) => "0123abcd".into(),
            ("format", [template, rest @ ..]) => {
                let mut text = words(template);
                for (number, argument) in rest.iter().enumerate() {
                    text = text.replace(&format!("{{{number}}}"), &words(argument));
                }
                text.into()
            }
            _ => panic!("{}: the function {name} is not known here", self.expression),
        }
    }

    fn look_up(&self, path: &str) -> Value {
        match path {
            "true" => return true.into(),
            "false" => return false.into(),
            "null" => return Value::Null,
            _ => {}
        }
        let mut value = self.scope.contexts;
        for (depth, name) in path.split('.').enumerate() {
            value = match value.get(name) {
                Some(value) => value,
                // What a step puts out is not known before; all else has to be there.
                None if path.contains(".outputs.") && depth == 3 => &Value::Null,
                None if path.starts_with("vars.") => &Value::Null,
                None => panic!("{}: there is no {path}", self.expression),
            };
        }
        value.clone()
    }
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(it) => *it,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(_) | Value::Object(_) => true,
    }
}

fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::String(left), Value::String(right)) => left.eq_ignore_ascii_case(right),
        _ if left == right => true,
        _ => {
            matches!((number(left), number(right)), (Some(left), Some(right)) if (left - right).abs() < f64::EPSILON)
        }
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Null => Some(0.0),
        Value::Bool(it) => Some(f64::from(u8::from(*it))),
        Value::Number(number) => number.as_f64(),
        Value::String(text) if text.is_empty() => Some(0.0),
        Value::String(text) => text.parse().ok(),
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// A value as it stands in a text.
pub fn words(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string().trim_end_matches(".0").to_owned(),
        other => other.to_string(),
    }
}

#[test]
fn expressions_mean_what_github_means_by_them() {
    let contexts = serde_json::json!({
        "inputs": {"attempt": 2, "name": "'\"; $(x)"},
        "steps": {"a": {"outcome": "success", "outputs": {"id": "7"}}, "b": {"outcome": "skipped", "outputs": {}}},
        "vars": {},
    });
    let scope = |status| Scope { contexts: &contexts, status };
    let text = |template: &str| scope("failure").text(template);
    assert_eq!(text("run ${{ inputs.attempt }} of ${{ inputs.name }}"), "run 2 of '\"; $(x)");
    assert_eq!(text("${{ steps.a.outcome == 'success' && 'yes' || 'no' }}"), "yes");
    assert_eq!(text("${{ steps.b.outcome == 'success' && 'yes' || 'no' }}"), "no");
    assert_eq!(text("${{ steps.b.outputs.id }}|${{ vars.none || '-' }}"), "|-");
    assert_eq!(text("${{ format('{0}-{1}', 'a', 1) }}"), "a-1");
    assert_eq!(text("${{ (inputs.attempt == '2') && !false }}"), "true");
    let runs = |status, condition| scope(status).condition(condition);
    assert!(runs("success", None) && !runs("failure", None));
    assert!(!runs("failure", Some("steps.a.outcome == 'success'")));
    assert!(runs("cancelled", Some("always() && steps.a.outcome == 'success'")));
    assert!(runs("cancelled", Some("${{ cancelled() }}")) && !runs("cancelled", Some("failure()")));
}

#[test]
#[should_panic(expected = "is not known here")]
fn an_unknown_function_fails_the_test() {
    Scope { contexts: &Value::Null, status: "success" }.value("fromJSON('1')");
}

#[test]
#[should_panic(expected = "there is no steps.x.outcome")]
fn an_unknown_name_fails_the_test() {
    Scope { contexts: &serde_json::json!({"steps": {}}), status: "success" }
        .value("steps.x.outcome");
}
