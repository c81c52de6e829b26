//! `/healthz` and `/readyz`.

use reqwest::Method;

use crate::harness::Server;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_serves_says_so_to_anybody() {
    let server = Server::start().await;
    let client = server.client();
    for path in ["/healthz", "/readyz"] {
        let answer = client.send(client.request(Method::GET, path)).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
    }
    client.agent("mari").await;
    let ready = client.read("/readyz").await;
    assert_eq!(ready["position"], 1);
    assert_eq!(ready["epoch"], client.read("/api/events").await["epoch"]);
}
