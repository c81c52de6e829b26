//! What the server says against what it promises: every answer a test gets is checked against
//! `schemas/openapi.json`, every message of a stream against `schemas/asyncapi.json`.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use jsonschema::{Registry, Validator};
use milepost_schemas::documents::{callback_schema, event_schema};
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::Message;

const OPENAPI_URI: &str = "https://milepost.test/openapi.json";
const ASYNCAPI_URI: &str = "https://milepost.test/asyncapi.json";

/// The kinds of callback that have a schema.
const CALLBACKS: [&str; 7] = ["heartbeat", "started", "step", "done", "failed", "task", "log"];

/// The OpenAPI document.
pub static OPENAPI: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../../schemas/openapi.json")).unwrap());

/// The AsyncAPI document.
pub static ASYNCAPI: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../../schemas/asyncapi.json")).unwrap());

/// Both, closed: for readers they are open, but a member that no document names fails a test.
static REGISTRY: LazyLock<Registry<'static>> = LazyLock::new(|| {
    Registry::new()
        .extend([(OPENAPI_URI, closed(&OPENAPI)), (ASYNCAPI_URI, closed(&ASYNCAPI))])
        .unwrap()
        .extend(CALLBACKS.map(|kind| {
            let schema = callback_schema(kind).unwrap();
            let uri = format!("https://milepost.test/callbacks/{kind}.json");
            (uri, serde_json::from_str::<Value>(schema).unwrap())
        }))
        .unwrap()
        .prepare()
        .unwrap()
});

static VALIDATORS: LazyLock<Mutex<HashMap<String, Arc<Validator>>>> = LazyLock::new(Mutex::default);

/// Panics unless the OpenAPI document has this answer. Pages are none of its business.
pub fn check_answer(
    method: &Method,
    path: &str,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
) {
    let what = format!("{method} {path}: {}", status.as_u16());
    let Some(template) = template(path) else {
        if path.starts_with("/api/") {
            assert_eq!(status, StatusCode::NOT_FOUND, "{what} of a route no document has");
            check_response(&what, "/components/responses/NotFound", headers, body);
        }
        return;
    };
    let item = format!("/paths/{}", escaped(template));
    let operation = format!("{item}/{}", method.as_str().to_ascii_lowercase());
    if OPENAPI.pointer(&operation).is_none() {
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{what} of a method no document has");
        check_response(&what, "/components/responses/MethodNotAllowed", headers, body);
        return;
    }
    check_response(&what, &format!("{operation}/responses/{}", status.as_u16()), headers, body);
}

/// Panics unless the OpenAPI document says that such a body is taken: it was.
pub fn check_taken(method: &Method, path: &str, body: &[u8]) {
    let Some(template) = template(path) else { return };
    let operation = format!("/paths/{}/{}", escaped(template), method.as_str().to_lowercase());
    let schema = format!("{operation}/requestBody/content/application~1json/schema");
    if OPENAPI.pointer(&schema).is_some() && !body.is_empty() {
        let body = serde_json::from_slice(body).unwrap();
        check(&format!("the body of {method} {path}"), OPENAPI_URI, &schema, &body);
    }
}

/// Panics unless an event's fact is what the schema of its type and version says.
fn check_event(event: &Value) {
    let kind = event["type"].as_str().unwrap();
    if kind == "Unknown" {
        // It is of a later version, whose schema is not here.
        return;
    }
    let version = event["schema_version"].as_i64().unwrap();
    let name = format!("{kind}.v{version}");
    let validator = cached(&name, || {
        let schema = event_schema(kind, version as i16).unwrap_or_else(|| panic!("{name}"));
        serde_json::from_str(schema).unwrap()
    });
    if let Err(error) = validator.validate(&event["data"]) {
        panic!("{name} breaks its schema: {error}\n{event:#}");
    }
}

/// Panics unless the AsyncAPI document has this message on the stream at this path.
pub fn check_message(path: &str, message: &Message) {
    let what = format!("{} on {path}", message.event);
    let channels = ASYNCAPI["channels"].as_object().unwrap();
    let channel =
        channels.values().find(|channel| fits(channel["address"].as_str().unwrap(), path));
    let channel = channel.unwrap_or_else(|| panic!("{what}: no such channel"));
    assert!(channel["messages"].get(&message.event).is_some(), "{what} is not documented");
    let component = format!("/components/messages/{}", message.event);
    let data = serde_json::from_str(&message.data).unwrap_or_else(|e| panic!("{what}: {e}"));
    check(&what, ASYNCAPI_URI, &format!("{component}/payload"), &data);
    check(&what, ASYNCAPI_URI, &format!("{component}/headers"), &json!({"id": message.id}));
    if message.event == "recorded" {
        check_event(&data);
    }
}

/// Panics unless a value is what the schema at a place of the OpenAPI document says.
pub fn check_openapi(what: &str, pointer: &str, value: &Value) {
    check(what, OPENAPI_URI, pointer, value);
}

/// Panics unless a value is what the schema at a place of the AsyncAPI document says.
pub fn check_asyncapi(what: &str, pointer: &str, value: &Value) {
    check(what, ASYNCAPI_URI, pointer, value);
}

/// A name as one part of a JSON pointer.
pub fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn template(path: &str) -> Option<&'static str> {
    let paths = OPENAPI["paths"].as_object().unwrap();
    paths.keys().map(String::as_str).find(|template| fits(template, path))
}

fn fits(template: &str, path: &str) -> bool {
    let (template, path): (Vec<_>, Vec<_>) =
        (template.split('/').collect(), path.split('/').collect());
    template.len() == path.len()
        && template.iter().zip(&path).all(|(part, given)| part.starts_with('{') || part == given)
}

fn check_response(what: &str, pointer: &str, headers: &HeaderMap, body: &[u8]) {
    let mut pointer = pointer.to_owned();
    let mut response =
        OPENAPI.pointer(&pointer).unwrap_or_else(|| panic!("{what} is not documented"));
    if let Some(reference) = response["$ref"].as_str() {
        pointer = reference.strip_prefix('#').unwrap().to_owned();
        response = OPENAPI.pointer(&pointer).unwrap();
    }
    for (name, header) in response["headers"].as_object().into_iter().flatten() {
        let value = headers.get(name).unwrap_or_else(|| panic!("{what} has no {name}"));
        let place = format!("{pointer}/headers/{name}/schema");
        assert!(header["schema"].is_object(), "{place}");
        check(what, OPENAPI_URI, &place, &json!(value.to_str().unwrap()));
    }
    let media_type = headers[CONTENT_TYPE].to_str().unwrap().split(';').next().unwrap();
    assert!(response["content"][media_type].is_object(), "{what} is {media_type}");
    let value = if media_type.ends_with("json") {
        serde_json::from_slice(body).unwrap_or_else(|error| panic!("{what}: {error}"))
    } else {
        Value::String(String::from_utf8_lossy(body).into_owned())
    };
    check(what, OPENAPI_URI, &format!("{pointer}/content/{}/schema", escaped(media_type)), &value);
    for event in value["events"].as_array().into_iter().flatten() {
        check_event(event);
    }
}

fn check(what: &str, uri: &str, pointer: &str, value: &Value) {
    // A pointer in a URI's fragment: braces are written in percent.
    let pointer = pointer.replace('{', "%7B").replace('}', "%7D");
    let reference = format!("{uri}#{pointer}");
    let errors: Vec<String> = cached(&reference, || json!({"$ref": reference}))
        .iter_errors(value)
        .map(|error| format!("\n  {}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{what} breaks {pointer}:{}\n{value:#}", errors.concat());
}

fn cached(name: &str, schema: impl FnOnce() -> Value) -> Arc<Validator> {
    let mut validators = VALIDATORS.lock().unwrap_or_else(PoisonError::into_inner);
    let build = || {
        let options = jsonschema::options().should_validate_formats(true).with_registry(&REGISTRY);
        Arc::new(options.build(&schema()).unwrap())
    };
    Arc::clone(validators.entry(name.to_owned()).or_insert_with(build))
}

/// A document whose objects take no member but those it names.
fn closed(document: &Value) -> Value {
    let mut parts = HashSet::new();
    find_parts(document, &mut parts);
    let mut document = document.clone();
    for (name, schema) in document["components"]["schemas"].as_object_mut().unwrap() {
        close(schema, parts.contains(&format!("#/components/schemas/{name}")));
    }
    document
}

/// The schemas that others extend: closed themselves, they would refuse what is added.
fn find_parts(value: &Value, parts: &mut HashSet<String>) {
    match value {
        Value::Object(members) => {
            for part in members.get("allOf").and_then(Value::as_array).into_iter().flatten() {
                parts.extend(part["$ref"].as_str().map(str::to_owned));
            }
            members.values().for_each(|member| find_parts(member, parts));
        }
        Value::Array(items) => items.iter().for_each(|item| find_parts(item, parts)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn close(schema: &mut Value, is_part: bool) {
    let Value::Object(members) = schema else { return };
    let open = members.contains_key("additionalProperties") || is_part;
    if members.contains_key("properties") && !open {
        members.insert("unevaluatedProperties".into(), false.into());
    }
    for (name, member) in members {
        match (name.as_str(), member) {
            ("properties", Value::Object(properties)) => {
                properties.values_mut().for_each(|property| close(property, false));
            }
            ("prefixItems" | "oneOf" | "anyOf", Value::Array(schemas)) => {
                for schema in schemas {
                    close(schema, false);
                }
            }
            ("items", schema) => close(schema, false),
            _ => {}
        }
    }
}
