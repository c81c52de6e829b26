//! `/api/nodes`.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio_postgres::error::SqlState;

use crate::harness::{Client, Server, sql, text};

/// An id that nothing has.
const NOBODY: &str = "019ab0c2-7d2a-7a41-8c33-5b1f0d9e7a02";

async fn register(client: &Client, hostname: &str, public_ip: &str) -> String {
    let body = json!({"hostname": hostname, "public_ip": public_ip});
    let (status, node) = client.post("/api/nodes", &body).await;
    assert_eq!(status, 201, "{node}");
    text(&node, "id")
}

async fn order(client: &Client, node: &str, what: &str) -> String {
    let (status, accepted) = client.post(&format!("/api/nodes/{node}/{what}"), &json!({})).await;
    assert_eq!(status, 202, "{accepted}");
    text(&accepted, "job_id")
}

async fn say(client: &Client, job: &str, status: &str) {
    let (answered, answer) = client.callback(&json!({"job_id": job, "status": status})).await;
    assert_eq!((answered.as_u16(), &answer["applied"]), (200, &json!(true)), "{answer}");
}

async fn read(client: &Client, node: &str) -> Value {
    client.read(&format!("/api/nodes/{node}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_registered_shown_and_listed() {
    let server = Server::start().await;
    let client = server.client();
    let body = json!({
        "hostname": "WEB-1.example.com",
        "public_ip": "2001:DB8:0::1",
        "ssh_user": "deploy",
        "ssh_port": 2222,
    });
    let (status, node) = client.post("/api/nodes", &body).await;
    assert_eq!(status, 201);
    for (name, value) in [
        ("hostname", json!("web-1.example.com")),
        ("public_ip", json!("2001:db8::1")),
        ("ssh_user", json!("deploy")),
        ("ssh_port", json!(2222)),
        ("status", json!("provisioning")),
        ("active_job_id", Value::Null),
        ("job", Value::Null),
    ] {
        assert_eq!(node[name], value, "{name}");
    }
    assert_eq!(read(&client, &text(&node, "id")).await, node);
    let second = register(&client, "web-2", "192.0.2.2").await;
    let list = client.read("/api/nodes").await;
    let ids: Vec<&Value> = list["nodes"].as_array().unwrap().iter().map(|it| &it["id"]).collect();
    assert_eq!(ids, [&json!(second), &node["id"]], "newest first");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_more_than_a_host_in_an_inventory_is_refused() {
    let server = Server::start().await;
    let client = server.client();
    let before = client.read("/api/events?limit=0").await["head"].clone();
    for (body, status) in [
        (json!({}), 400),
        (json!({"hostname": "web-1"}), 400),
        (json!({"hostname": 1, "public_ip": "192.0.2.1"}), 400),
        (json!({"hostname": "web-1", "public_ip": "192.0.2.1", "ssh_port": 65_536}), 400),
        (json!({"hostname": "web-1", "public_ip": "192.0.2.1", "ssh_port": 0}), 422),
        (json!({"hostname": "web-1\n[all:vars]", "public_ip": "192.0.2.1"}), 422),
        (json!({"hostname": "web ansible_connection=local", "public_ip": "192.0.2.1"}), 422),
        (json!({"hostname": "{{ lookup('pipe','id') }}", "public_ip": "192.0.2.1"}), 422),
        (json!({"hostname": "'\"; touch /tmp/pwn; \"'", "public_ip": "192.0.2.1"}), 422),
        (json!({"hostname": "web-1", "public_ip": "192.0.2.1 -o ProxyCommand=id"}), 422),
        (json!({"hostname": "web-1", "public_ip": "0.0.0.0"}), 422),
        (
            json!({"hostname": "web-1", "public_ip": "192.0.2.1", "ssh_user": "-oProxyCommand=id"}),
            422,
        ),
    ] {
        let (answered, problem) = client.post("/api/nodes", &body).await;
        assert_eq!(answered, status, "{body}: {problem}");
        assert!(!text(&problem, "detail").is_empty());
    }
    assert_eq!(client.read("/api/events?limit=0").await["head"], before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_name_and_an_address_belong_to_one_node_until_it_is_given_up() {
    let server = Server::start().await;
    let client = server.client();
    let node = register(&client, "web-1", "192.0.2.1").await;
    for (hostname, public_ip) in [("WEB-1", "192.0.2.9"), ("web-9", "::ffff:192.0.2.1")] {
        let body = json!({"hostname": hostname, "public_ip": public_ip});
        let (status, problem) = client.post("/api/nodes", &body).await;
        assert_eq!(status, 409, "{problem}");
        assert_eq!(problem["type"], "urn:milepost:problem:node-exists");
        assert_eq!(problem["node_id"], node);
    }
    let job = order(&client, &node, "decommission").await;
    say(&client, &job, "running").await;
    assert_eq!(read(&client, &node).await["status"], "decommissioned");
    assert_ne!(register(&client, "web-1", "192.0.2.1").await, node);
    for what in ["provision", "decommission"] {
        let (status, problem) = client.post(&format!("/api/nodes/{node}/{what}"), &json!({})).await;
        assert_eq!(status, 409);
        assert_eq!(problem["type"], "urn:milepost:problem:node-decommissioned");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_nodes_with_one_name_one_is_registered() {
    let server = Server::start().await;
    let other = Server::beside(&server).await;
    let mut sent = tokio::task::JoinSet::new();
    for number in 0..16 {
        let client = if number % 2 == 0 { server.client() } else { other.client() };
        let body = json!({"hostname": "web-1", "public_ip": format!("192.0.2.{number}")});
        sent.spawn(async move { client.post("/api/nodes", &body).await.0 });
    }
    let answers = sent.join_all().await;
    let count = |status| answers.iter().filter(|answer| **answer == status).count();
    assert_eq!((count(StatusCode::CREATED), count(StatusCode::CONFLICT)), (1, 15), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_status_follows_its_jobs() {
    let server = Server::start().await;
    let client = server.client();
    let node = register(&client, "web-1", "192.0.2.1").await;
    let active = async || client.read("/api/metrics").await["nodes_active"].clone();

    let job = order(&client, &node, "provision").await;
    let shown = read(&client, &node).await;
    assert_eq!((&shown["status"], &shown["active_job_id"]), (&json!("provisioning"), &json!(job)));
    say(&client, &job, "provisioning").await;
    say(&client, &job, "running").await;
    let shown = read(&client, &node).await;
    assert_eq!((&shown["status"], &shown["active_job_id"]), (&json!("active"), &Value::Null));
    assert_eq!(shown["job"]["status"], "succeeded");
    assert_eq!(active().await, 1);

    // A decommission that comes to nothing leaves the node as it was.
    let job = order(&client, &node, "decommission").await;
    assert_eq!(read(&client, &node).await["status"], "active");
    client.post(&format!("/api/jobs/{job}/cancel"), &json!({"reason": "it serves"})).await;
    assert_eq!(read(&client, &node).await["status"], "active");

    // A provision that comes to nothing makes it unreachable.
    let job = order(&client, &node, "provision").await;
    client.post(&format!("/api/jobs/{job}/cancel"), &json!({})).await;
    assert_eq!(read(&client, &node).await["status"], "unreachable");
    assert_eq!(active().await, 0);

    // By hand, a job is repeated as what it was.
    let body = json!({"reason": "the rack has power again"});
    let (status, accepted) = client.post(&format!("/api/jobs/{job}/retry"), &body).await;
    assert_eq!(status, 202, "{accepted}");
    let again = client.read(&format!("/api/jobs/{}", text(&accepted, "job_id"))).await;
    for (name, value) in [
        ("job_type", json!("provision_node")),
        ("node_id", json!(node)),
        ("agent_id", Value::Null),
        ("instance_id", Value::Null),
        ("region", Value::Null),
        ("retry_of", json!(job)),
        ("retry_reason", json!("the rack has power again")),
    ] {
        assert_eq!(again[name], value, "{name}");
    }
    assert_eq!(again["timeline"][0]["steps"][3]["label"], "Running Playbook");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_orders_to_a_node_one_is_taken() {
    let server = Server::start().await;
    let client = server.client();
    let node = register(&client, "web-1", "192.0.2.1").await;
    let mut sent = tokio::task::JoinSet::new();
    for number in 0..16 {
        let what = if number % 2 == 0 { "provision" } else { "decommission" };
        let (client, path) = (client.clone(), format!("/api/nodes/{node}/{what}"));
        sent.spawn(async move { client.post(&path, &json!({})).await });
    }
    let answers = sent.join_all().await;
    let (taken, refused): (Vec<_>, Vec<_>) =
        answers.iter().partition(|(status, _)| *status == StatusCode::ACCEPTED);
    assert_eq!((taken.len(), refused.len()), (1, 15));
    for (status, problem) in refused {
        assert_eq!(*status, StatusCode::CONFLICT);
        assert_eq!(problem["type"], "urn:milepost:problem:node-busy");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_too_holds_one_active_job_a_node() {
    let server = Server::start().await;
    let client = server.client();
    let node = register(&client, "web-1", "192.0.2.1").await;
    let owner = sql(&server.database_url()).await;
    let insert = |job: &str| {
        format!(
            "INSERT INTO queue (job_id, job_type, node_id, state, due_at) \
             VALUES ('{job}', 'provision_node', '{node}', 'queued', now() + interval '1 hour')"
        )
    };
    // Past every decision: the code that guards has not seen this job.
    owner.batch_execute(&insert(NOBODY)).await.unwrap();
    let (status, problem) = client.post(&format!("/api/nodes/{node}/provision"), &json!({})).await;
    assert_eq!(status, 409, "{problem}");
    assert_eq!(problem["type"], "urn:milepost:problem:node-busy");
    assert_eq!(read(&client, &node).await["job"], Value::Null, "nothing of it is in the log");
    // Nor by SQL alone.
    let error = owner.batch_execute(&insert(&node)).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.constraint(), Some("queue_one_job_a_node"));
    assert_eq!(error.code(), &SqlState::UNIQUE_VIOLATION);
    owner.batch_execute(&format!("DELETE FROM queue WHERE job_id = '{NOBODY}'")).await.unwrap();
    order(&client, &node, "provision").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_found_under_an_id_that_no_node_has() {
    let server = Server::start().await;
    let client = server.client();
    for id in [NOBODY, "web-1"] {
        for (method, tail) in
            [(Method::GET, ""), (Method::POST, "/provision"), (Method::POST, "/decommission")]
        {
            let request = client.request(method, &format!("/api/nodes/{id}{tail}"));
            let answer = client.send(request.header("authorization", client.authorization())).await;
            assert_eq!(answer.status, 404, "{id}{tail}: {}", answer.text());
            assert!(answer.text().contains("There is no such node"), "{}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_and_the_list_of_nodes_are_followed_in_one_stream() {
    let server = Server::start().await;
    let client = server.client();
    let node = register(&client, "web-1", "192.0.2.1").await;
    let path = format!("/api/stream?node=all&node={node}&events={node}");
    let mut stream = client.stream(&path, None).await;
    assert_eq!(stream.next_named("node").await.json()["status"], "provisioning");
    let job = order(&client, &node, "provision").await;
    let requested = stream.next_named("recorded").await.json();
    assert_eq!(requested["type"], "NodeProvisioningRequested");
    let queued = stream.next_named("recorded").await.json();
    assert_eq!((&queued["type"], &queued["data"]["job_id"]), (&json!("JobQueued"), &json!(job)));
    say(&client, &job, "running").await;
    loop {
        let state = stream.next_named("node").await.json();
        if state["status"] == "active" {
            assert_eq!(state["job"]["status"], "succeeded");
            break;
        }
    }
    // Who watches all of them hears of a new one.
    let other = register(&client, "web-2", "192.0.2.2").await;
    loop {
        if stream.next_named("node").await.json()["id"] == other {
            break;
        }
    }
}
