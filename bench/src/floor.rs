//! The floor: raw sockets and prepared bytes. No history, no access check, no HTTP beyond the
//! least that the load generator understands.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Mutex,
};

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: ok\n\n\
                      event: tidings.caught_up\ndata: {}\n\n";
const DONE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

/// Says where it listens, as the hub does, and serves until it is ended.
pub(crate) async fn run() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    println!(r#"{{"url":"http://{address}","publisher_key":"k","reader_token":"t"}}"#);
    let readers: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        tokio::spawn(serve(stream, Arc::clone(&readers)));
    }
}

async fn serve(mut stream: TcpStream, readers: Arc<Mutex<Vec<TcpStream>>>) {
    let frame = format!(
        "id: AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE\ndata: {{\"specversion\":\"1.0\",\"data\":\"{}\"}}\n\n",
        "x".repeat(200)
    );
    let mut request = vec![0; 4096];
    loop {
        let count = stream.read(&mut request).await.unwrap_or(0);
        match request.get(..count) {
            None | Some([]) => return,
            Some(head) if head.starts_with(b"GET") => {
                if stream.write_all(HEAD).await.is_ok() {
                    readers.lock().await.push(stream);
                }
                return;
            }
            Some(_) => {
                for reader in readers.lock().await.iter_mut() {
                    // A reader that went away is not measured.
                    let _ = reader.write_all(frame.as_bytes()).await;
                }
                if stream.write_all(DONE).await.is_err() {
                    return;
                }
            }
        }
    }
}
