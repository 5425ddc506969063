//! Which web pages may connect and publish, and by which names of the server.

use crate::support::{Answer, EventStream, Http, Server, Start, handshake_with};

const JSON: &str = "Content-Type: application/json";
const TEXT: &str = r#"{"data":1}"#;

/// Returns the status of the answer to a handshake.
async fn dial(server: &Server, host: &str, fields: &[&str]) -> u16 {
    server.status(&handshake_with(host, fields)).await
}

async fn publish(server: &Server, host: &str, fields: &[&str]) -> Answer {
    let head = format!(
        "POST /api/publish HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n{}\r\n\r\n{TEXT}",
        TEXT.len(),
        [fields, &[JSON]].concat().join("\r\n"),
    );
    server.exchange(head).await
}

#[tokio::test]
async fn a_page_whose_name_points_to_this_machine_may_neither_connect_nor_publish() {
    let server = Server::start().await;
    let port = server.address.port();
    for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "notlocalhost"] {
        let (host, origin) = (format!("{host}:{port}"), format!("Origin: http://{host}:{port}"));
        assert_eq!(dial(&server, &host, &[&origin]).await, 403, "{host}");
        let answer = publish(&server, &host, &[&origin]).await;
        assert_eq!(answer.error(), (403, "host_not_allowed".into()), "{host}");
        assert!(answer.body.contains("allowed_origins") && answer.body.contains("api_keys"), "{answer:?}");
        assert_eq!(publish(&server, &host, &[]).await.status, 403, "{host}, an old browser");
    }
    let said = server.logged("a WebSocket handshake was refused: ").await;
    assert!(said.to_string().contains("allowed_origins"), "{said}");
    for host in ["127.0.0.1", "[::1]", "192.0.2.7", "localhost", "LocalHost.", "app.localhost"] {
        let (host, origin) = (format!("{host}:{port}"), format!("Origin: http://{host}:{port}"));
        assert_eq!(dial(&server, &host, &[&origin]).await, 101, "{host}");
        assert_eq!(publish(&server, &host, &[&origin]).await.status, 200, "{host}");
    }
}

/// Fields that a page can set with `fetch`, and one that it cannot.
const FORWARDED: [&str; 7] = [
    "X-Forwarded-For: 192.0.2.7",
    "X-Forwarded-Proto: https",
    "X-Real-IP: 192.0.2.7",
    "Forwarded: for=192.0.2.7",
    "CF-Connecting-IP: 192.0.2.7",
    "X-Client-IP: 192.0.2.7",
    "Via: 1.1 proxy",
];

#[tokio::test]
async fn no_field_that_a_page_can_set_opens_anything() {
    let listed = Start::default().env("ALLOWED_ORIGINS", "https://app.example").serve().await;
    for server in [Server::start().await, listed] {
        let host = format!("evil.example:{}", server.address.port());
        let origin = format!("Origin: http://{host}");
        // A browser has no `Origin` in a GET of the page's own host.
        for fields in FORWARDED.iter().map(|field| vec![*field]).chain([vec![], FORWARDED.to_vec()]) {
            for (method, code) in [("GET", "host_not_allowed"), ("HEAD", "")] {
                let head = format!(
                    "{method} /events?channel=a HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{}\r\n",
                    fields.iter().map(|field| format!("{field}\r\n")).collect::<String>()
                );
                let answer = server.exchange(head).await;
                assert_eq!(answer.status, 403, "{method} {fields:?}");
                assert!(answer.body.contains(code), "{answer:?}");
            }
            let with_origin = [&[origin.as_str()], &*fields].concat();
            assert_eq!(dial(&server, &host, &with_origin).await, 403, "{fields:?}");
            assert_eq!(publish(&server, &host, &fields).await.status, 403, "{fields:?}");
            assert_eq!(publish(&server, &host, &with_origin).await.status, 403, "{fields:?}");
        }
        // By one of the server's own names, each of them refuses publishing all the same.
        for field in FORWARDED {
            let answer = publish(&server, "localhost", &[field]).await;
            assert_eq!(answer.error(), (403, "loopback_only".into()), "{field}");
        }
    }
}

#[tokio::test]
async fn a_proxy_on_the_same_machine_needs_the_origin_of_its_name_in_allowed_origins() {
    let origin = "Origin: https://example.org";
    let forwarded = "X-Forwarded-For: 192.0.2.7";
    let events = async |server: &Server, fields: &[&str]| {
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        server.status(&format!("GET /events HTTP/1.1\r\nHost: example.org\r\n{fields}\r\n")).await
    };
    let server = Server::start().await;
    for fields in [&[origin][..], &[origin, forwarded]] {
        assert_eq!(dial(&server, "example.org", fields).await, 403);
        assert_eq!(events(&server, fields).await, 403);
    }
    let said = server.logged("a WebSocket handshake was refused: ").await;
    assert!(said.to_string().contains("behind a proxy"), "it says what to do: {said}");
    assert_eq!(dial(&server, "example.org", &[]).await, 101, "not a page");
    let server = Start::default().env("ALLOWED_ORIGINS", "https://example.org").serve().await;
    for fields in [&[origin][..], &[origin, forwarded], &[forwarded], &[]] {
        assert_eq!(dial(&server, "example.org", fields).await, 101);
        assert_eq!(events(&server, fields).await, 200);
    }
}

#[tokio::test]
async fn names_of_the_server_in_the_settings_are_its_own() {
    let origin = "Origin: http://app.example";
    for (setting, value) in [("ALLOWED_ORIGINS", "http://app.example"), ("ALLOWED_ORIGINS", "*")] {
        let server = Start::default().env(setting, value).serve().await;
        assert_eq!(publish(&server, "app.example", &[origin]).await.status, 200, "{value}");
        assert_eq!(publish(&server, "app.example:8000", &[]).await.status, 200, "{value}");
        assert_eq!(dial(&server, "app.example", &[origin]).await, 101, "{value}");
    }
    let listed = Start::default().env("ALLOWED_ORIGINS", "http://app.example").serve().await;
    assert_eq!(publish(&listed, "other.example", &[]).await.status, 403);
    // With a key, loopback is not the only proof.
    let keys = Start::default().env("API_KEYS", "0123456789abcdef").serve().await;
    let key = "Authorization: Bearer 0123456789abcdef";
    assert_eq!(publish(&keys, "app.example", &[key]).await.status, 200);
    assert_eq!(dial(&keys, "app.example", &[origin]).await, 403);
    // Nor is it where the network can connect.
    let open = Start::default().env("HOST", "0.0.0.0").serve().await;
    assert_eq!(dial(&open, "app.example", &[origin]).await, 101);
    assert_eq!(publish(&open, "app.example", &[]).await.status, 403);
}

#[tokio::test]
async fn pages_of_listed_origins_are_told_that_they_may_publish_and_others_are_not() {
    let server =
        Start::default().env("ALLOWED_ORIGINS", "https://app.example, http://[::1]:3000").serve().await;
    let preflight = async |server: &Server, origin: &str| {
        let fields = [
            &format!("Origin: {origin}"),
            "Access-Control-Request-Method: POST",
            "Access-Control-Request-Headers: authorization,content-type",
        ];
        server.request("OPTIONS", "/api/publish", &fields, "").await
    };
    for origin in ["https://app.example", "http://[::1]:3000"] {
        let answer = preflight(&server, origin).await;
        assert_eq!((answer.status, answer.header("allow")), (204, Some("POST,OPTIONS")));
        assert_eq!(answer.header("access-control-allow-origin"), Some(origin));
        assert_eq!(answer.header("access-control-allow-methods"), Some("POST"));
        assert_eq!(
            answer.header("access-control-allow-headers"),
            Some("authorization,content-type,idempotency-key")
        );
        assert_eq!(answer.header("access-control-max-age"), Some("3600"));
        assert_eq!(answer.header("access-control-allow-credentials"), None);
        assert!(answer.header("vary").is_some_and(|vary| vary.contains("origin")), "{answer:?}");
        let origin_field = format!("Origin: {origin}");
        let answer = server.request("POST", "/api/publish", &[&origin_field, JSON], TEXT).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some(origin)));
        // The page can read why, too.
        let answer = server.request("POST", "/api/publish", &[&origin_field], TEXT).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (415, Some(origin)));
    }
    let same_host = Server::start().await;
    let own = format!("http://{}", same_host.address);
    for (server, origin) in [
        (&server, "https://evil.example"),
        (&server, "null"),
        (&same_host, "https://app.example"),
        (&same_host, &own),
    ] {
        let answer = preflight(server, origin).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (204, None), "{origin}");
    }
    let any = Start::default().env("ALLOWED_ORIGINS", "*").serve().await;
    let answer = preflight(&any, "https://anyone.example").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (204, Some("*")));
    let answer = any.request("POST", "/api/publish", &["Origin: null", JSON], TEXT).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some("*")));
    // Not what is no page's business.
    let metrics = any.request("GET", "/metrics", &["Origin: https://anyone.example"], "").await;
    assert_eq!((metrics.status, metrics.header("access-control-allow-origin")), (200, None));
}

#[tokio::test]
async fn pages_of_listed_origins_may_read_events_with_credentials_and_any_page_without() {
    let listed =
        Start::default().env("ALLOWED_ORIGINS", "https://app.example, http://[::1]:3000").serve().await;
    let any = Start::default().env("ALLOWED_ORIGINS", "*").serve().await;
    let same_host = Server::start().await;
    let own = format!("http://{}", same_host.address);
    let asked = "authorization,cache-control,last-event-id";
    for (server, origin, allowed, credentials) in [
        (&listed, "https://app.example", Some("https://app.example"), Some("true")),
        (&listed, "http://[::1]:3000", Some("http://[::1]:3000"), Some("true")),
        (&listed, "https://evil.example", None, None),
        (&listed, "null", None, None),
        (&any, "https://anyone.example", Some("*"), None),
        (&any, "null", Some("*"), None),
        (&same_host, "https://app.example", None, None),
        (&same_host, &own, None, None),
    ] {
        let origin_field = format!("Origin: {origin}");
        let preflight = [
            &origin_field,
            "Access-Control-Request-Method: GET",
            &format!("Access-Control-Request-Headers: {asked}"),
        ];
        let answer = server.request("OPTIONS", "/events?channel=a", &preflight, "").await;
        assert_eq!((answer.status, answer.header("allow")), (204, Some("GET,HEAD,OPTIONS")), "{origin}");
        assert_eq!(answer.header("access-control-allow-origin"), allowed, "{origin}");
        assert_eq!(answer.header("access-control-allow-credentials"), credentials, "{origin}");
        if allowed.is_some() {
            assert_eq!(answer.header("access-control-allow-headers"), Some(asked));
            assert_eq!(answer.header("access-control-allow-methods"), Some("GET"));
            assert_eq!(answer.header("access-control-max-age"), Some("3600"));
        }
        // The stream, its head, and what refuses it.
        let may = allowed.is_some() || origin == own;
        let mut heads = vec![
            EventStream::open(&server.address.to_string(), "/events?channel=a", &[&origin_field]).await.head,
        ];
        assert_eq!(heads[0].starts_with("HTTP/1.1 200 OK\n"), may, "{origin}: {heads:?}");
        for (method, path, status) in
            [("HEAD", "/events", 200), ("GET", "/events?channel=a+b", 400), ("PUT", "/events", 405)]
        {
            let answer = server.request(method, path, &[&origin_field], "").await;
            let status = if may || status == 405 { status } else { 403 };
            assert_eq!(answer.status, status, "{method} {path} {origin}");
            heads.push(answer.head);
        }
        for head in heads {
            let header = |name: &str| {
                let mut lines = head.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                (lines.next(), lines.next())
            };
            assert_eq!(header("access-control-allow-origin"), (allowed, None), "{origin}: {head}");
            assert_eq!(header("access-control-allow-credentials"), (credentials, None), "{origin}: {head}");
            let varies = header("vary").0.is_some_and(|vary| vary.contains("origin"));
            assert_eq!(
                varies,
                std::ptr::eq(server, &listed),
                "only a list has several answers: {origin}: {head}"
            );
        }
        // The API has no credentials, whoever asks.
        for (method, path) in [
            ("OPTIONS", "/api/publish"),
            ("POST", "/api/publish"),
            ("OPTIONS", "/api/publish/batch"),
            ("OPTIONS", "/api/channels"),
            ("GET", "/api/channels"),
            ("GET", "/api/channels/a/history"),
        ] {
            let answer = server.request(method, path, &preflight, "").await;
            assert_eq!(answer.header("access-control-allow-credentials"), None, "{method} {path} {origin}");
        }
    }
    // An operator sees who was refused.
    let line = listed.logged("a request for events was refused: Pages of ").await;
    assert_eq!((&line["fields"]["origin"], &line["level"]), (&"https://evil.example".into(), &"INFO".into()));
}

#[tokio::test]
async fn a_full_server_tells_pages_of_other_origins_so() {
    let start = Start::default().env("ALLOWED_ORIGINS", "https://app.example").env("MAX_CONNECTIONS", "1");
    let server = start.serve().await;
    let _client = server.client().await;
    let path = "/events?channel=a";
    let mut stream =
        EventStream::open(&server.address.to_string(), path, &["Origin: https://app.example"]).await;
    assert!(stream.head.contains("access-control-allow-origin: https://app.example\n"), "{}", stream.head);
    assert_eq!(stream.next().await.unwrap().data["code"], "full");
}

#[tokio::test]
async fn a_server_without_room_for_another_request_tells_pages_of_other_origins_so() {
    for (allowed, header) in [("https://app.example", "https://app.example"), ("*", "*")] {
        let server = Start::default().env("ALLOWED_ORIGINS", allowed).env("MAX_HTTP_CONNECTIONS", 64);
        let server = server.serve().await;
        let mut halves = Vec::new();
        for _ in 0..64 {
            let mut half = Http::connect(&server).await;
            let request = half.publication(r#"{"data":1}"#);
            half.send(&request[..request.len() - 1]).await;
            halves.push(half);
        }
        let headers = ["Origin: https://app.example", "Accept: text/event-stream"];
        let mut stream = EventStream::open(&server.address.to_string(), "/events?channel=a", &headers).await;
        let expected = format!("access-control-allow-origin: {header}\n");
        assert!(stream.head.contains(&expected), "{}", stream.head);
        assert_eq!(stream.next().await.unwrap().data["code"], "full");
    }
}

#[tokio::test]
async fn a_refused_page_is_told_why_and_what_to_do() {
    let server = Server::start().await;
    for origin in ["null", "file://"] {
        let refusal = server.refusal(&[("Origin", origin)]).await;
        assert_eq!(refusal.error(), (403, "origin_not_allowed".into()));
        for words in ["no origin of its own", "Serve it over HTTP", "`allowed_origins`"] {
            assert!(refusal.body.contains(words), "{refusal:?}");
        }
    }
    let refusal = server.refusal(&[("Origin", "https://app.example")]).await;
    assert_eq!(refusal.error(), (403, "origin_not_allowed".into()));
    let target = server.address.to_string();
    for words in ["`https://app.example`", &target, "`allowed_origins`"] {
        assert!(refusal.body.contains(words), "{refusal:?}");
    }
}

#[tokio::test]
async fn the_page_may_do_what_it_needs_and_is_in_no_frame() {
    let server = Server::start().await;
    for method in ["GET", "HEAD"] {
        let page = server.request(method, "/", &[], "").await;
        assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
        let policy = page.header("content-security-policy").unwrap();
        for part in
            ["default-src 'none'", "script-src 'sha256-", "style-src 'sha256-", "frame-ancestors 'none'"]
        {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    }
    // An operator's own page has what it likes, but is in no frame of another origin either.
    let server =
        Start::default().file("pages/index.html", "<p>own").env("TEMPLATES_DIR", "pages").serve().await;
    let page = server.get("/").await;
    assert_eq!(page.header("content-security-policy"), Some("frame-ancestors 'self'"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
}
