//! Pages of the history: what a caller asks for costs the server little, and the others nothing.

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::{Server, Start, soon};

/// As many publications of `big` as one page may have by their number, of 60,000 bytes each.
const PUBLICATIONS: usize = 1000;

async fn full_server() -> Server {
    let start = Start::default().env("HISTORY_SIZE", PUBLICATIONS).env("HISTORY_BYTES", "128MiB");
    let server = start.serve().await;
    let one = json!({ "channel": "big", "data": "x".repeat(60_000) });
    for _ in 0..PUBLICATIONS / 10 {
        let batch = json!({ "publications": vec![&one; 10] }).to_string();
        let answer =
            server.request("POST", "/api/publish/batch", &["Content-Type: application/json"], &batch).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_has_a_megabyte_at_most_and_the_next_one_continues_it() {
    let server = full_server().await;
    let (mut since, mut read, mut pages) = (String::new(), 0, 0);
    loop {
        let answer = server.get(&format!("/api/channels/big/history?limit=1000&since={since}")).await;
        assert_eq!(answer.status, 200);
        assert!(answer.body.len() < (1 << 20) + 2 * 60_000, "{}", answer.body.len());
        let page: Value = answer.json();
        assert_eq!(page["recovered"], true);
        let publications = page["publications"].as_array().unwrap();
        for publication in publications {
            read += 1;
            let id = publication["id"].as_str().unwrap();
            assert!(id.ends_with(&format!("-{read}")), "{id} is number {read}");
            id.clone_into(&mut since);
        }
        pages += 1;
        if page["more"] == false {
            assert_eq!(page["id"], since);
            break;
        }
        assert!(!publications.is_empty());
    }
    assert_eq!((read, pages), (PUBLICATIONS, PUBLICATIONS.div_ceil(18)));
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_read_no_page_cost_little_and_delay_no_other_request() {
    let server = full_server().await;
    let before = server.memory();
    let request =
        format!("GET /api/channels/big/history?limit=1000 HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
    let callers = (0..40).map(|_| async {
        let mut caller = tokio::net::TcpStream::connect(server.address).await.unwrap();
        caller.write_all(request.as_bytes()).await.unwrap();
        soon("the beginning of an answer", caller.readable()).await.unwrap();
        caller
    });
    let callers = join_all(callers).await;
    assert_eq!(server.get("/health/live").await.status, 200);
    let after = server.memory();
    // All of their pages together are 42 MB, and all that they asked for is 2.4 GB.
    assert!(after < before + (32 << 20), "{before}, then {after}");
    drop(callers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_not_made_by_looking_at_it() {
    let server = Server::start().await;
    let page = server.get("/api/channels/none/history").await;
    assert_eq!(page.status, 200);
    let page = page.json();
    assert_eq!(
        (&page["publications"], &page["more"], &page["recovered"]),
        (&json!([]), &json!(false), &json!(true))
    );
    assert_eq!(server.get("/api/channels/none").await.status, 404);
    assert_eq!(server.get("/api/channels").await.json()["channels"], json!([]));
    assert!(server.get("/metrics").await.body.contains("lastcall_channels 0.0\n"));
}
