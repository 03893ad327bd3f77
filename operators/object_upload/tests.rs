//! Uploads to a folder, to memory, to a small S3 server of our own that fails on demand, and to real stores where `scripts/services` runs
//! them (`real_stores`).

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use ulid::Ulid;

use super::*;
use crate::batch::{Group, Signal};
use crate::parquet_roll::{Day, FileKind};

mod real_stores;

fn file(folder: &Path, number: u64, content: &[u8]) -> StableFile {
    let local = folder.join(format!("{number}.local"));
    std::fs::write(&local, content).unwrap();
    StableFile {
        file: Ulid::from_parts(number, 1),
        kind: FileKind::Rows,
        local,
        path: format!("lake/orders/traces/day={number}/node/{number}.parquet"),
        day: Day(1),
        rows: 1,
        bytes: content.len() as u64,
        time_min_ns: None,
        time_max_ns: None,
        schema_hash: "".into(),
        schema_version: 0,
    }
}

fn commit(files: Vec<StableFile>) -> ClosedCommit {
    let group = Group { index: "orders".into(), signal: Signal::Traces };
    let (commit_id, node, coverage, deliveries) = (Ulid::from_parts(1, 1), "node".into(), vec![], vec![]);
    ClosedCommit { commit_id, group, generation: 0, node, files, coverage, deliveries }
}

/// Small parts, so that small files have several.
fn config() -> Config {
    Config { chunk_bytes: 5 << 20, attempts_max: 4, backoff_ms: 1, backoff_max_ms: 5, ..Config::default() }
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|position| (position / 251 + position) as u8).collect()
}

async fn uploads_come_back_whole(operator: &Operator) {
    uploads_come_back_whole_by(operator, &config()).await;
}

async fn uploads_come_back_whole_by(operator: &Operator, config: &Config) {
    let folder = tempfile::tempdir().unwrap();
    let contents = [content(0), content(1), content((11 << 20) + 17), content(5 << 20)];
    let files: Vec<StableFile> =
        contents.iter().enumerate().map(|(number, content)| file(folder.path(), number as u64, content)).collect();
    let commit = commit(files);
    for _ in 0..2 {
        let uploaded = upload_commit(operator, &commit, config).await.unwrap();
        assert_eq!((uploaded.files, uploaded.bytes), (4, contents.iter().map(|content| content.len() as u64).sum()));
        for (file, content) in commit.files.iter().zip(&contents) {
            assert!(operator.read(&file.path).await.unwrap().to_vec() == *content, "{}", file.path);
        }
    }
    remove_local(&commit).unwrap();
    remove_local(&commit).unwrap();
    assert!(commit.files.iter().all(|file| !file.local.exists()));
    remove_objects(operator, &commit).await.unwrap();
    remove_objects(operator, &commit).await.unwrap();
    assert!(!operator.exists(&commit.files[2].path).await.unwrap());
    let gone = upload_commit(operator, &commit, config).await.expect_err("local files are gone");
    assert!(matches!(gone, Error::Local { .. }) && !gone.is_retriable());
}

#[tokio::test]
async fn objects_in_a_folder_appear_whole_and_stale_leftovers_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let temporary = folder.path().join(TEMPORARY_FOLDER);
    std::fs::create_dir_all(&temporary).unwrap();
    for (name, age_hours) in [("stale", 25), ("fresh", 1)] {
        let leftover = std::fs::File::create(temporary.join(name)).unwrap();
        leftover.set_modified(std::time::SystemTime::now() - Duration::from_secs(age_hours * 3_600)).unwrap();
    }
    let operator = build_operator(&ObjectStore::Fs { root: folder.path().to_path_buf() }).unwrap();
    uploads_come_back_whole(&operator).await;
    let left: Vec<_> = std::fs::read_dir(&temporary).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["fresh"], "nothing half-written stays behind");
}

#[tokio::test]
async fn objects_in_memory_come_back_whole() {
    uploads_come_back_whole(&build_operator(&ObjectStore::Memory).unwrap()).await;
}

/// Answers of the small server, one per request; when they run out it behaves.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Status(u16),
    Hangup,
    WrongSize,
    /// As it should be.
    Right,
    /// The error that a real S3 hides in the body of a good answer when it cannot put the parts together.
    ErrorInBody,
}

/// An S3 of one object: PUT, HEAD and uploads in parts. Gives its address and the log of requests.
async fn small_s3(mut answers: Vec<Answer>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let log = Arc::new(Mutex::new(Vec::new()));
    let requests = log.clone();
    answers.reverse();
    let answers = Arc::new(Mutex::new(answers));
    tokio::spawn(async move {
        let size = Arc::new(Mutex::new(0));
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(BufReader::new(socket), answers.clone(), requests.clone(), size.clone()));
        }
    });
    (address, log)
}

async fn serve(
    mut socket: BufReader<tokio::net::TcpStream>,
    answers: Arc<Mutex<Vec<Answer>>>,
    log: Arc<Mutex<Vec<String>>>,
    size: Arc<Mutex<usize>>,
) {
    loop {
        let (mut head, mut line) = (String::new(), String::new());
        while socket.read_line(&mut line).await.unwrap_or(0) > 2 {
            head.push_str(&line);
            line.clear();
        }
        let Some(request) = head.lines().next() else { return };
        let length = head
            .lines()
            .find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(|length| length.trim().to_string()));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        socket.read_exact(&mut body).await.unwrap();
        log.lock().unwrap().push(request.split(['?', ' ']).take(2).collect::<Vec<_>>().join(" "));
        let (status, shown, body) = match answers.lock().unwrap().pop() {
            Some(Answer::Hangup) => return,
            Some(Answer::Status(status)) => (status, 0, ""),
            Some(Answer::WrongSize) => (200, 1, ""),
            Some(Answer::ErrorInBody) => (200, ERROR.len(), ERROR),
            Some(Answer::Right) | None => right(request, length, &mut size.lock().unwrap()),
        };
        // HEAD has a length and no body.
        let answer = format!("HTTP/1.1 {status} Status\r\nContent-Length: {shown}\r\nETag: \"e\"\r\n\r\n{body}");
        if socket.get_mut().write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

const STARTED: &str = "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>";
const COMPLETED: &str = "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>";
const ERROR: &str = "<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>";

/// Status, length and body of the right answer to a request.
fn right(request: &str, length: usize, size: &mut usize) -> (u16, usize, &'static str) {
    let (is_part, is_start) = (request.contains("partNumber="), request.contains("?uploads"));
    match request.split(' ').next() {
        Some("PUT") => {
            *size = if is_part { *size + length } else { length };
            (200, 0, "")
        }
        Some("POST") if is_start => {
            *size = 0;
            (200, STARTED.len(), STARTED)
        }
        Some("POST") => (200, COMPLETED.len(), COMPLETED),
        Some("DELETE") => (204, 0, ""),
        _ => (200, *size, ""),
    }
}

fn small_store(endpoint: String) -> Operator {
    let keys = (Some(Secret::new("key")), Some(Secret::new("top secret")));
    let s3 =
        S3 { bucket: "lake".into(), endpoint: Some(endpoint), access_key_id: keys.0, secret_access_key: keys.1, ..S3::default() };
    build_operator(&ObjectStore::S3(s3)).unwrap()
}

#[tokio::test]
async fn uploads_are_repeated_after_errors_worth_it_and_no_others() {
    use Answer::{Hangup, Status, WrongSize};
    let folder = tempfile::tempdir().unwrap();
    let cases: Vec<(Vec<Answer>, Option<u64>)> = vec![
        (vec![], Some(0)),
        (vec![Status(503), Status(500)], Some(2)),
        (vec![Hangup], Some(1)),
        (vec![Status(429), Hangup, Status(502)], Some(3)),
        // The upload went well, what lies there did not.
        (vec![Status(200), WrongSize], Some(1)),
        (vec![Status(503); 4], None),
        (vec![Status(403)], None),
    ];
    for (answers, expected) in cases {
        let (endpoint, log) = small_s3(answers.clone()).await;
        let uploaded = upload_file(&small_store(endpoint), &file(folder.path(), 1, &content(1_000)), &config()).await;
        assert_eq!(uploaded.as_ref().ok().map(|uploaded| uploaded.failures), expected, "{answers:?}: {uploaded:?} {log:?}");
        let shown = uploaded.err().map_or(String::new(), |error| format!("{error} {error:?}"));
        assert!(!shown.contains("top secret"), "{shown}");
    }
    let (endpoint, log) = small_s3(vec![Status(403)]).await;
    let refused = upload_file(&small_store(endpoint), &file(folder.path(), 1, b"x"), &config()).await.expect_err("forbidden");
    assert!(!refused.is_retriable() && log.lock().unwrap().len() == 1, "{refused}");
}

#[tokio::test]
async fn the_last_file_is_sent_after_all_others_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let commit = commit((1..=5).map(|number| file(folder.path(), number, &content(100))).collect());
    let (endpoint, log) = small_s3(vec![Answer::Status(503), Answer::Hangup]).await;
    upload_commit(&small_store(endpoint), &commit, &config()).await.unwrap();
    let log = log.lock().unwrap().clone();
    let last = format!("PUT /lake/{}", commit.files[4].path.replace('=', "%3D"));
    let position = log.iter().position(|request| *request == last).unwrap_or_else(|| panic!("{log:?}"));
    let after: Vec<&String> = log[position + 1..].iter().collect();
    assert!(after.len() == 1 && after[0].starts_with("HEAD"), "{log:?}");
}

#[tokio::test]
async fn an_upload_in_parts_that_fails_midway_is_given_up_and_begun_anew() {
    use Answer::{ErrorInBody, Hangup, Right, Status};
    let folder = tempfile::tempdir().unwrap();
    // Three parts: a start, three PUTs, the end, and a HEAD.
    let file = file(folder.path(), 1, &content((11 << 20) + 17));
    let config = Config { chunks_concurrent: 1, ..config() };
    let cases = [
        (vec![], 0),
        (vec![Status(503)], 1),
        (vec![Right, Status(500)], 1),
        (vec![Right, Right, Hangup], 1),
        (vec![Right, Right, Right, Right, Status(503)], 1),
        (vec![Right, Right, Right, Right, ErrorInBody], 1),
        (vec![Right, Right, Right, Right, Right, Status(500)], 1),
    ];
    for (answers, expected) in cases {
        let (endpoint, log) = small_s3(answers.clone()).await;
        let uploaded = upload_file(&small_store(endpoint), &file, &config).await;
        let log = log.lock().unwrap().clone();
        assert_eq!(uploaded.as_ref().ok().map(|uploaded| uploaded.failures), Some(expected), "{answers:?}: {uploaded:?} {log:?}");
        let parts = log.iter().filter(|request| request.starts_with("PUT")).count();
        assert!(parts >= 3 && log.last().is_some_and(|request| request.starts_with("HEAD")), "{answers:?}: {log:?}");
    }
}

/// Runs `object_upload` on one commit until `until` holds; true if the commit was handed on.
fn run_operator(store: Operator, commit: ClosedCommit, runtime: &tokio::runtime::Runtime, health: &Health) -> bool {
    let (ports, config) = (Ports { runtime: runtime.handle().clone(), store, health: health.clone() }, config());
    let health = health.clone();
    timely::execute_directly(move |worker| {
        let handed_on = std::rc::Rc::new(std::cell::Cell::new(false));
        let seen = handed_on.clone();
        let mut input = worker.dataflow::<Epoch, _, _>(|scope| {
            let (input, stream) = timely::dataflow::operators::Input::new_input(&scope);
            timely::dataflow::operators::Inspect::inspect(object_upload(stream, config, ports), move |_| seen.set(true));
            input
        });
        input.send(Arc::new(commit));
        drop(input);
        while worker.has_dataflows() && !health.failed() {
            worker.step_or_park(Some(Duration::from_millis(10)));
        }
        for dataflow in worker.installed_dataflows() {
            worker.drop_dataflow(dataflow);
        }
        handed_on.get()
    })
}

#[test]
fn an_object_that_cannot_be_verified_holds_its_commit_until_it_can() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let commit = commit(vec![file(folder.path(), 1, &content(1_000))]);
    // More than one round of attempts: PUT and HEAD each time.
    let answers = [Answer::Right, Answer::WrongSize].repeat(config().attempts_max as usize + 1);
    let (endpoint, log) = runtime.block_on(small_s3(answers));
    let health = Health::default();
    assert!(run_operator(small_store(endpoint), commit, &runtime, &health) && !health.failed());
    assert_eq!(log.lock().unwrap().len(), 2 * (config().attempts_max as usize + 2));
}

/// Panics at the first request.
#[derive(Debug)]
struct Panicking;

impl opendal::HttpTransport for Panicking {
    async fn fetch(
        &self,
        _: tonic::codegen::http::Request<opendal::Buffer>,
    ) -> opendal::Result<tonic::codegen::http::Response<opendal::HttpBody>> {
        panic!("as staged")
    }
}

impl opendal::raw::Layer for Panicking {
    fn apply_context(&self, _service: opendal::raw::Servicer, inner: opendal::OperationContext) -> opendal::OperationContext {
        inner.with_http_transport(opendal::HttpTransporter::new(Panicking))
    }
}

#[test]
fn an_upload_that_panics_raises_a_fault_instead_of_standing_still() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let commit = commit(vec![file(folder.path(), 1, &content(1_000))]);
    let health = Health::default();
    let store = small_store("http://127.0.0.1:1".into()).layer(Panicking);
    assert!(!run_operator(store, commit, &runtime, &health));
    assert_eq!(health.fault().map(|fault| fault.to_string()), Some("object_upload: an I/O task panicked: as staged".into()));
}

#[test]
fn secrets_are_never_shown() {
    let s3 =
        S3 { secret_access_key: Some(Secret::new("top secret")), access_key_id: Some(Secret::new("the id")), ..S3::default() };
    let shown = format!("{:?}", ObjectStore::S3(s3));
    assert!(!shown.contains("top secret") && !shown.contains("the id") && shown.contains("***"), "{shown}");
}

/// A store that answers each request with what `answer` makes of its first line. Gives its address and the requests with their headers.
async fn recording_store(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let log = Arc::new(Mutex::new(Vec::new()));
    let (requests, answer) = (log.clone(), Arc::new(answer));
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let (requests, answer) = (requests.clone(), answer.clone());
            tokio::spawn(async move {
                let mut socket = BufReader::new(socket);
                loop {
                    let (mut head, mut line) = (String::new(), String::new());
                    while socket.read_line(&mut line).await.unwrap_or(0) > 2 {
                        head.push_str(&line);
                        line.clear();
                    }
                    let Some(first) = head.lines().next() else { return };
                    let length =
                        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.trim().parse().ok());
                    let mut body = vec![0; length.unwrap_or(0)];
                    socket.read_exact(&mut body).await.unwrap();
                    let answer = answer(first);
                    requests.lock().unwrap().push(head);
                    if socket.get_mut().write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, log)
}

/// No Google here: what is shown is that the right requests go out, not that Google likes them.
#[tokio::test]
async fn gcs_is_asked_for_the_bucket_and_object() {
    let folder = tempfile::tempdir().unwrap();
    let object = |_: &str| {
        let json =
            r#"{"name":"n","bucket":"telemetry","size":"1000","etag":"e","generation":"1","updated":"2026-01-01T00:00:00Z"}"#;
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}", json.len())
    };
    let (endpoint, log) = recording_store(object).await;
    let gcs = Gcs { bucket: "telemetry".into(), endpoint: Some(endpoint), credential_path: None };
    let operator = build_operator(&ObjectStore::Gcs(gcs)).unwrap();
    let uploaded = upload_file(&operator, &file(folder.path(), 1, &content(1_000)), &config()).await.unwrap();
    assert_eq!((uploaded.files, uploaded.failures), (1, 0));
    let log = log.lock().unwrap().clone();
    let [upload, stat] = &log[..] else { panic!("two requests: {log:?}") };
    assert!(upload.starts_with("POST /upload/storage/v1/b/telemetry/o?uploadType="), "{upload}");
    assert!(upload.contains("lake%2Forders%2Ftraces%2Fday%3D1%2Fnode%2F1.parquet"), "{upload}");
    assert!(stat.starts_with("GET /storage/v1/b/telemetry/o/lake%2Forders"), "{stat}");
    // A credential file that is not there is an error at the first request, not a fall-back to other credentials.
    let wrong = Gcs { bucket: "telemetry".into(), endpoint: None, credential_path: Some("/nonexistent/key.json".into()) };
    let operator = build_operator(&ObjectStore::Gcs(wrong)).unwrap();
    assert!(operator.stat("x").await.is_err());
}

/// Nor do emulators know Google's uploads in parts.
#[tokio::test]
async fn gcs_is_sent_a_large_object_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let answer = |first: &str| {
        let (more, body) = match first {
            _ if first.contains("?uploads") => {
                ("", "<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>")
            }
            _ if first.starts_with("PUT") => ("ETag: \"e\"\r\n", ""),
            _ if first.starts_with("POST") => {
                ("", "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>")
            }
            _ => (
                "",
                r#"{"name":"n","bucket":"b","size":"11534353","etag":"e","generation":"1","updated":"2026-01-01T00:00:00Z"}"#,
            ),
        };
        format!("HTTP/1.1 200 OK\r\n{more}Content-Length: {}\r\n\r\n{body}", body.len())
    };
    let (endpoint, log) = recording_store(answer).await;
    let gcs = Gcs { bucket: "telemetry".into(), endpoint: Some(endpoint), credential_path: None };
    let operator = build_operator(&ObjectStore::Gcs(gcs)).unwrap();
    let uploaded = upload_file(&operator, &file(folder.path(), 1, &content((11 << 20) + 17)), &config()).await.unwrap();
    assert_eq!((uploaded.files, uploaded.failures), (1, 0));
    let log = log.lock().unwrap().clone();
    let part = |number: usize| {
        log.iter().any(|request| request.starts_with("PUT") && request.contains(&format!("partNumber={number}&")))
    };
    assert!(log[0].starts_with("POST /telemetry/lake%2Forders") && log[0].contains("?uploads"), "{log:?}");
    assert!(part(1) && part(2) && part(3) && !part(4), "{log:?}");
    let [.., complete, stat] = &log[..] else { panic!("no end: {log:?}") };
    assert!(complete.starts_with("POST") && complete.contains("uploadId=u1") && stat.starts_with("GET"), "{log:?}");
}

/// No Azure here, either.
#[tokio::test]
async fn azblob_is_asked_for_the_container_and_object_with_the_accounts_signature() {
    let folder = tempfile::tempdir().unwrap();
    let object = |first: &str| match first.starts_with("PUT") {
        true => "HTTP/1.1 201 Created\r\nETag: \"e\"\r\nContent-Length: 0\r\n\r\n".to_string(),
        false => "HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: 1000\r\n\r\n".to_string(),
    };
    let (endpoint, log) = recording_store(object).await;
    let azblob = Azblob {
        container: "telemetry".into(),
        endpoint,
        account_name: Some("openwit".into()),
        account_key: Some(Secret::new("dG9wIHNlY3JldA==")),
    };
    let shown = format!("{:?}", ObjectStore::Azblob(azblob.clone()));
    assert!(!shown.contains("dG9wIHNlY3JldA"), "{shown}");
    let operator = build_operator(&ObjectStore::Azblob(azblob)).unwrap();
    let uploaded = upload_file(&operator, &file(folder.path(), 1, &content(1_000)), &config()).await.unwrap();
    assert_eq!((uploaded.files, uploaded.failures), (1, 0));
    let log = log.lock().unwrap().clone();
    let [upload, stat] = &log[..] else { panic!("two requests: {log:?}") };
    let path = "/telemetry/lake/orders/traces/day%3D1/node/1.parquet";
    assert!(upload.starts_with(&format!("PUT {path}")) && stat.starts_with(&format!("HEAD {path}")), "{log:?}");
    let signed = |request: &str| request.to_lowercase().contains("authorization: sharedkey openwit:");
    assert!(signed(upload) && signed(stat), "{log:?}");
}

#[tokio::test]
async fn a_store_that_throttles_in_its_own_words_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let answer = move |first: &str| {
        let slow =
            "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
        match (asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed), first.starts_with("PUT")) {
            (0..=1, _) => format!("HTTP/1.1 503 Slow Down\r\nContent-Length: {}\r\n\r\n{slow}", slow.len()),
            (_, true) => "HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: 0\r\n\r\n".into(),
            (_, false) => "HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: 1000\r\n\r\n".into(),
        }
    };
    let (endpoint, _) = recording_store(answer).await;
    let uploaded = upload_file(&small_store(endpoint), &file(folder.path(), 1, &content(1_000)), &config()).await.unwrap();
    assert_eq!((uploaded.files, uploaded.failures), (1, 2));
}

/// A hung store takes connections and says nothing.
#[tokio::test]
async fn a_store_that_hangs_is_noticed_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let s3 = S3 {
        bucket: "lake".into(),
        endpoint: Some(format!("http://{}", listener.local_addr().unwrap())),
        access_key_id: Some(Secret::new("key")),
        secret_access_key: Some(Secret::new("secret")),
        ..S3::default()
    };
    let operator = build_patient_operator(&ObjectStore::S3(s3), Duration::from_millis(100)).unwrap();
    let config = Config { attempts_max: 3, ..config() };
    let hung = upload_file(&operator, &file(folder.path(), 1, &content(1_000)), &config).await.expect_err("nobody answers");
    assert!(hung.is_retriable() && chain(&hung).contains("timeout"), "{}", chain(&hung));
}
