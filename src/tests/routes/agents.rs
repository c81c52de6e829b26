//! `/api/agents`.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Client, Server, sql};

/// An id that nothing has.
const NOBODY: &str = "019ab0c2-7d2a-7a41-8c33-5b1f0d9e7a02";

async fn applied(client: &Client, body: Value) {
    let (status, answer) = client.callback(&body).await;
    assert_eq!((status.as_u16(), &answer["applied"]), (200, &json!(true)), "{body}: {answer}");
}

/// The five steps in a letter each: pending, active, completed, error.
fn letters(answer: &Value) -> String {
    let steps = answer["steps"].as_array().unwrap();
    steps.iter().map(|step| step["status"].as_str().unwrap().chars().next().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_made_shown_and_listed() {
    let server = Server::start().await;
    let client = server.client();
    let (status, mari) =
        client.post("/api/agents", &json!({"name": " Märi 1 ", "region": "eu-north"})).await;
    assert_eq!(status, 201);
    assert_eq!((&mari["name"], &mari["region"]), (&json!("Märi 1"), &json!("eu-north")));
    assert_eq!((&mari["status"], &mari["active_job_id"]), (&json!("new"), &Value::Null));
    let liis = client.agent("liis").await;
    let id = mari["id"].as_str().unwrap();
    assert_eq!(client.read(&format!("/api/agents/{id}")).await, mari);
    let list = client.read("/api/agents").await;
    let rows = list["agents"].as_array().unwrap();
    let ids: Vec<&Value> = rows.iter().map(|row| &row["id"]).collect();
    assert_eq!(ids, [&json!(liis), &mari["id"]], "newest first");
    assert_eq!((&rows[0]["region"], &rows[0]["instance"]), (&json!("eu-central"), &Value::Null));
    assert_eq!(letters(&rows[0]), "ppppp");
    let instance = client.read(&format!("/api/agents/{id}/instance")).await;
    assert_eq!((&instance["instance"], &instance["uptime"]), (&Value::Null, &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_makes_no_sense_is_refused() {
    let server = Server::start().await;
    let client = server.client();
    let agent = client.agent("mari").await;
    let provision = format!("/api/agents/{agent}/provision");
    let before = client.read("/api/events?limit=0").await["head"].clone();
    for (path, body, status, kind) in [
        ("/api/agents", json!({}), 400, "bad-request"),
        ("/api/agents", json!({"name": null}), 400, "bad-request"),
        ("/api/agents", json!({"name": 7}), 400, "bad-request"),
        ("/api/agents", json!(["mari", null]), 400, "bad-request"),
        ("/api/agents", json!("mari"), 400, "bad-request"),
        ("/api/agents", json!({"name": "   "}), 422, "refused"),
        ("/api/agents", json!({"name": "a\nb"}), 422, "refused"),
        ("/api/agents", json!({"name": "a".repeat(64)}), 422, "refused"),
        ("/api/agents", json!({"name": "mari", "region": "mars"}), 422, "refused"),
        (&provision, json!({"region": "mars"}), 422, "refused"),
        (&provision, json!({"region": 1}), 400, "bad-request"),
    ] {
        let (answered, problem) = client.post(path, &body).await;
        assert_eq!(answered, status, "{path} {body}: {problem}");
        assert_eq!(problem["type"], format!("urn:milepost:problem:{kind}"), "{path} {body}");
    }
    assert_eq!(client.read("/api/events?limit=0").await["head"], before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_the_api_is_json_of_at_most_64_kib() {
    let server = Server::start().await;
    let client = server.client();
    let post = || {
        let request = client.request(Method::POST, "/api/agents");
        request.header("authorization", client.authorization())
    };
    let form = client.form("/api/agents", &[("name", "mari")]);
    let form = form.header("authorization", client.authorization());
    assert_eq!(client.send(form).await.status, 415);
    let broken = post().header("content-type", "application/json").body("{\"name\":");
    assert_eq!(client.send(broken).await.status, 400);
    // An agent's name that would not do is looked at: the body was small enough.
    let shell = json!({"name": ""}).to_string().len();
    let body = |bytes: usize| json!({"name": "n".repeat(bytes - shell)}).to_string();
    let json = |body| post().header("content-type", "application/json").body(body);
    assert_eq!(client.send(json(body(65_536))).await.status, 422);
    for head in ["Content-Length: 65537\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n10001\r\n"] {
        let mut request = format!(
            "POST /api/agents HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\n\
             Content-Type: application/json\r\nConnection: close\r\n{head}",
            client.authorization()
        );
        if head.contains("chunked") {
            request = [&*request, &*body(65_537), "\r\n0\r\n\r\n"].concat();
        }
        let answer = client.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.contains("urn:milepost:problem:too-large"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_found_under_an_id_that_nothing_has() {
    let server = Server::start().await;
    let client = server.client();
    for id in [NOBODY, "mari", "0", "%FF"] {
        for (method, tail) in [
            (Method::GET, ""),
            (Method::GET, "/instance"),
            (Method::GET, "/instance/stream"),
            (Method::POST, "/provision"),
        ] {
            let request = client.request(method, &format!("/api/agents/{id}{tail}"));
            let answer = client.send(request.header("authorization", client.authorization())).await;
            assert_eq!(answer.status, 404, "{id}{tail}: {}", answer.text());
            assert!(answer.text().contains("There is no such agent"), "{}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_has_one_active_job_at_a_time() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let provision = format!("/api/agents/{agent}/provision");
    let (status, problem) = client.post(&provision, &json!({})).await;
    assert_eq!(status, 409);
    assert_eq!(problem["type"], "urn:milepost:problem:agent-busy");
    assert_eq!(problem["job_id"], job);
    assert_eq!(client.read(&format!("/api/agents/{agent}")).await["active_job_id"], job);
    applied(&client, json!({"job_id": job, "status": "running"})).await;
    let (status, next) = client.post(&provision, &json!({"region": "us-west"})).await;
    assert_eq!(status, 202);
    let job = client.read(&format!("/api/jobs/{}", next["job_id"].as_str().unwrap())).await;
    assert_eq!((&job["region"], &job["retry_of"]), (&json!("us-west"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_orders_at_once_one_is_taken() {
    let server = Server::start().await;
    let client = server.client();
    let agent = client.agent("mari").await;
    let mut sent = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (client, path) = (client.clone(), format!("/api/agents/{agent}/provision"));
        sent.spawn(async move { client.post(&path, &json!({})).await.0 });
    }
    let answers = sent.join_all().await;
    let count = |status| answers.iter().filter(|answer| **answer == status).count();
    assert_eq!((count(StatusCode::ACCEPTED), count(StatusCode::CONFLICT)), (1, 15));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_too_holds_one_active_job_an_agent() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, _) = client.job("mari").await;
    let owner = sql(&server.database_url()).await;
    let insert = format!(
        "INSERT INTO queue (job_id, job_type, agent_id, state, due_at) \
         VALUES ('{NOBODY}', 'provision_agent', '{agent}', 'queued', now())"
    );
    let error = owner.batch_execute(&insert).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.constraint(), Some("queue_one_job_an_agent"));
    assert_eq!(error.code(), &tokio_postgres::error::SqlState::UNIQUE_VIOLATION);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_of_an_instance_shows_its_step() {
    let server = Server::start().await;
    let client = server.client();
    let started = json!({"status": "provisioning"});
    let step = |name: &str| json!({"status": "provisioning", "step": name});
    let failed = |phase: &str| json!({"status": "failed", "failed_step": phase});
    let bare = json!({"status": "failed"});
    let done = json!({"status": "running"});
    let table = [
        ("pending", vec![], "pending", None, "apppp"),
        ("started", vec![started.clone()], "provisioning", None, "cappp"),
        ("unknown", vec![step("coffee")], "provisioning", None, "cappp"),
        ("vm", vec![step("vm_created")], "provisioning", Some("vm_created"), "ccapp"),
        (
            "network",
            vec![step("network_configured")],
            "provisioning",
            Some("network_configured"),
            "ccapp",
        ),
        (
            "ansible",
            vec![step("ansible_started")],
            "provisioning",
            Some("ansible_started"),
            "cccap",
        ),
        (
            "configured",
            vec![step("ansible_complete")],
            "provisioning",
            Some("ansible_complete"),
            "cccca",
        ),
        (
            "unknown after known",
            vec![step("ansible_started"), step("coffee")],
            "provisioning",
            Some("ansible_started"),
            "cccap",
        ),
        (
            "late",
            vec![step("ansible_complete"), step("vm_created"), started.clone()],
            "provisioning",
            Some("ansible_complete"),
            "cccca",
        ),
        ("running", vec![step("ansible_complete"), done.clone()], "running", None, "ccccc"),
        ("running at once", vec![done], "running", None, "ccccc"),
        (
            "failed at provision",
            vec![started.clone(), failed("provision")],
            "failed",
            None,
            "ceppp",
        ),
        (
            "failed at configure",
            vec![started.clone(), failed("configure")],
            "failed",
            None,
            "cccep",
        ),
        (
            "failed at configure-agent",
            vec![started.clone(), failed("configure-agent")],
            "failed",
            None,
            "cccep",
        ),
        ("failed somewhere", vec![started.clone(), bare], "failed", None, "ccepp"),
        (
            "failed after a step",
            vec![step("ansible_started"), failed("configure")],
            "failed",
            Some("ansible_started"),
            "cccep",
        ),
        (
            "failed with its step",
            vec![
                started,
                json!({"status": "failed", "failed_step": "provision", "step": "vm_created"}),
            ],
            "failed",
            Some("vm_created"),
            "ccepp",
        ),
    ];
    for (name, callbacks, status, current_step, expected) in table {
        let (agent, job) = client.job(name).await;
        for mut callback in callbacks {
            callback["job_id"] = job.clone().into();
            applied(&client, callback).await;
        }
        let answer = client.read(&format!("/api/agents/{agent}/instance")).await;
        assert_eq!(answer["instance"]["status"], status, "{name}");
        assert_eq!(answer["instance"]["current_step"], json!(current_step), "{name}");
        assert_eq!(letters(&answer), expected, "{name}");
        // The list says the same.
        let list = client.read("/api/agents").await;
        let row = list["agents"].as_array().unwrap().iter().find(|row| row["id"] == *agent);
        assert_eq!(letters(row.unwrap()), expected, "{name} in the list");
    }
}
