//! `schemas/openapi.json` and `schemas/asyncapi.json`: what they say is what there is. That
//! answers and messages are as documented is checked wherever a test gets one.

use std::collections::BTreeSet;

use milepost::http::ROUTES;
use milepost_schemas::EventType;
use serde_json::{Value, json};

use crate::harness::documents::{ASYNCAPI, OPENAPI, check_asyncapi, check_openapi, escaped};

/// Members of a path item that are no methods.
const NO_METHODS: [&str; 1] = ["parameters"];

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().unwrap().iter()
}

/// Every reference in a document.
fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get("$ref").and_then(Value::as_str));
            members.values().for_each(|member| references(member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_route_is_documented_and_every_documented_route_is_there() {
    let documented: BTreeSet<(String, String)> = object(&OPENAPI["paths"])
        .flat_map(|(path, item)| {
            object(item)
                .filter(|(method, _)| !NO_METHODS.contains(&method.as_str()))
                .map(|(method, _)| (path.clone(), method.clone()))
        })
        .collect();
    let there: BTreeSet<(String, String)> = ROUTES
        .iter()
        .flat_map(|(path, methods)| {
            methods.iter().map(|(it, _)| (in_documents(path), (*it).into()))
        })
        .collect();
    assert_eq!(documented, there);
}

/// A route as the documents name it: OpenAPI has no parameter that takes the rest of a path.
fn in_documents(route: &str) -> String {
    let named = route.replace("/log/tile/{*path}", "/log/tile/{level}/{index}");
    named.replace("/log/tile/entries/{*path}", "/log/tile/entries/{index}")
}

#[test]
fn every_stream_is_in_both_documents() {
    let streams: BTreeSet<&str> = object(&OPENAPI["paths"])
        .filter(|(_, item)| item["get"]["tags"][0] == "streams")
        .map(|(path, _)| path.as_str())
        .collect();
    let channels: BTreeSet<&str> = object(&ASYNCAPI["channels"])
        .map(|(_, channel)| channel["address"].as_str().unwrap())
        .collect();
    assert_eq!(streams, channels);
}

#[test]
fn every_reference_resolves_and_every_component_is_used() {
    let mut of_openapi = Vec::new();
    references(&OPENAPI, &mut of_openapi);
    let mut of_asyncapi = Vec::new();
    references(&ASYNCAPI, &mut of_asyncapi);
    let in_openapi = of_openapi.iter().filter_map(|reference| reference.strip_prefix('#'));
    let from_asyncapi =
        of_asyncapi.iter().filter_map(|reference| reference.strip_prefix("openapi.json#"));
    let in_openapi: BTreeSet<&str> = in_openapi.chain(from_asyncapi).collect();
    let in_asyncapi: BTreeSet<&str> =
        of_asyncapi.iter().filter_map(|reference| reference.strip_prefix('#')).collect();
    // Answers of the whole server, not of one route.
    let everywhere = ["/components/responses/MethodNotAllowed"];
    let callbacks: Vec<&str> =
        of_openapi.iter().filter_map(|reference| reference.strip_prefix("callbacks/")).collect();
    assert_eq!(callbacks.len(), 7);
    for file in callbacks {
        let kind = file.strip_suffix(".json").unwrap();
        assert!(milepost_schemas::documents::callback_schema(kind).is_some(), "{kind}");
    }
    for (document, pointers) in [(&*OPENAPI, &in_openapi), (&*ASYNCAPI, &in_asyncapi)] {
        for pointer in pointers {
            assert!(document.pointer(pointer).is_some(), "{pointer} leads nowhere");
        }
        for (kind, components) in object(&document["components"]) {
            for (name, _) in object(components).filter(|_| kind != "securitySchemes") {
                let pointer = format!("/components/{kind}/{name}");
                let inside = format!("{pointer}/");
                let used = pointers.iter().any(|it| *it == pointer || it.starts_with(&inside));
                assert!(used || everywhere.contains(&pointer.as_str()), "{pointer} is not used");
            }
        }
    }
}

#[test]
fn every_example_is_what_its_schema_says() {
    let mut count = 0;
    let mut check = |pointer: &str, content: &Value| {
        for (media_type, body) in object(content) {
            if let Some(example) = body.get("example") {
                let schema = format!("{pointer}/{}/schema", escaped(media_type));
                check_openapi("an example", &schema, example);
                count += 1;
            }
        }
    };
    for (path, item) in object(&OPENAPI["paths"]) {
        for (method, operation) in
            object(item).filter(|(name, _)| !NO_METHODS.contains(&name.as_str()))
        {
            let operation_at = format!("/paths/{}/{method}", escaped(path));
            if let Some(content) = operation["requestBody"].get("content") {
                check(&format!("{operation_at}/requestBody/content"), content);
            }
            for (status, response) in object(&operation["responses"]) {
                if let Some(content) = response.get("content") {
                    check(&format!("{operation_at}/responses/{status}/content"), content);
                }
            }
        }
    }
    for (name, response) in object(&OPENAPI["components"]["responses"]) {
        check(&format!("/components/responses/{name}/content"), &response["content"]);
    }
    assert!(count > 30, "{count}");
    for (name, message) in object(&ASYNCAPI["components"]["messages"]) {
        for example in message["examples"].as_array().into_iter().flatten() {
            let message_at = format!("/components/messages/{name}");
            check_asyncapi(name, &format!("{message_at}/payload"), &example["payload"]);
            check_asyncapi(name, &format!("{message_at}/headers"), &example["headers"]);
        }
    }
}

#[test]
fn what_no_document_names_is_noticed() {
    let at = "/components/schemas/Accepted";
    let mut value = json!({"job_id": "019ab0c2-7d2a-7a41-8c33-5b1f0d9e7a02"});
    check_openapi("an answer", at, &value);
    value["more"] = 1.into();
    let noticed = std::panic::catch_unwind(|| check_openapi("an answer", at, &value));
    assert!(noticed.is_err());
    let row = OPENAPI["paths"]["/api/agents"]["get"]["responses"]["200"].clone();
    let mut row = row["content"]["application/json"]["example"]["agents"][0].clone();
    check_openapi("a row", "/components/schemas/AgentRow", &row);
    row["more"] = 1.into();
    let noticed =
        std::panic::catch_unwind(|| check_openapi("a row", "/components/schemas/AgentRow", &row));
    assert!(noticed.is_err());
}

#[test]
fn every_event_type_is_documented() {
    let documented = OPENAPI["components"]["schemas"]["EventType"]["enum"].as_array().unwrap();
    let documented: BTreeSet<&str> = documented.iter().map(|it| it.as_str().unwrap()).collect();
    let there: BTreeSet<&str> = EventType::ALL.iter().map(|kind| kind.name()).collect();
    assert_eq!(documented, there);
}

#[test]
fn the_documented_limits_are_those_in_force() {
    use milepost::domain::Limits;
    use milepost::{http, intake, log, push};

    let words = OPENAPI["info"]["description"].as_str().unwrap();
    let limits = Limits::default();
    let delays: Vec<String> =
        limits.retry_delays.iter().map(|it| (it.as_secs() / 60).to_string()).collect();
    assert_eq!((http::BODY_BYTES_MAX, intake::github::BODY_BYTES_MAX), (65_536, 65_536));
    assert_eq!(milepost_schemas::callback::LOG_LINES_MAX, 500);
    assert_eq!((intake::lines::LINE_BYTES_MAX, intake::lines::NAME_BYTES_MAX), (4_096, 1_000));
    assert_eq!(milepost::views::LOG_ROWS_MAX, 1_000);
    assert_eq!((log::READ_EVENTS_MAX, milepost::views::LIST_ROWS_MAX), (1_000, 1_000));
    for promise in [
        "a body has at most 65,536 bytes".to_owned(),
        "a list holds at most 1,000 items".to_owned(),
        format!("a stream watches at most {} things", push::WANTS_MAX),
        "a *log* callback brings at most 500 lines of 4,096 bytes".to_owned(),
        "a page of a log has at most 1,000 rows".to_owned(),
        format!("within {} s of now", intake::github::TIMESTAMP_SECONDS_MAX),
        format!("at most {} attempts", limits.max_attempts()),
        format!("with {}, {} and {} minutes", delays[0], delays[1], delays[2]),
        format!("after {} minutes of silence", limits.silence.as_secs() / 60),
        format!("or {} in all", limits.attempt.as_secs() / 60),
    ] {
        assert!(words.contains(&promise), "{promise}");
    }
}
