//! Everybody comes back at once: after a restart, each reader to its own topic, a hundred events
//! behind, while somebody publishes one event after the other.

use std::{
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use tokio::{
    runtime,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{DATA_BYTES, Load, Watch};
use crate::{
    client::{Delays, From, Publisher, Reader, Request, Tally, Target, WAIT_MAX, cursor, micros},
    figure::{Figure, Unit},
    server::{Kind, Server, Setup},
};

const BEHIND: usize = 100;

pub(super) async fn measure(kind: Kind, load: Load) -> Vec<Figure> {
    let mut server = Server::start(kind, Setup { has_history: true, ..Setup::default() });
    let mut cursors = Vec::new();
    let mut publisher = Publisher::connect(&server.target).await;
    for topic in 0..load.n {
        let mut first = server.target.publish(topic, DATA_BYTES);
        cursors.push(cursor(publisher.ask(first.stamped()).await));
        let rest = server.target.publish_all(std::iter::repeat_n(topic, BEHIND), DATA_BYTES);
        publisher.ask(rest.after(1).stamped()).await;
    }
    server.restart();
    let target = &server.target;
    let publishing = Aside::start(target.clone(), target.publish(load.n, DATA_BYTES));
    tokio::time::sleep(load.span / 4).await;
    publishing.delays();
    tokio::time::sleep(load.span).await;
    let calm = publishing.delays();

    let (watch, came) = (Watch::start(&server), Instant::now());
    let tally = Tally::new();
    let mut readers = JoinSet::new();
    for (topic, cursor) in cursors.iter().enumerate() {
        let request = target.follow(topic, From::Cursor(cursor));
        let (target, tally) = (target.clone(), Rc::clone(&tally));
        readers.spawn_local(async move {
            let reader = Reader::open(target.connect(topic).await, &request, None).await;
            let mut reader = reader.after(1);
            reader.count(&tally, BEHIND as u64).await.unwrap();
            reader
        });
    }
    let all = timeout(WAIT_MAX, readers.join_all()).await;
    let caught_up = came.elapsed().as_secs_f64();
    let spent = watch.stop();
    let stormy = publishing.delays();
    publishing.stop();
    assert!(all.is_ok(), "{} of {} events came", tally.events(), load.n * BEHIND);
    assert_eq!(tally.events(), (load.n * BEHIND) as u64, "events came that were not published");
    let mut figures = vec![
        Figure::new("all caught up", Unit::Seconds, caught_up),
        Figure::new("publisher p99", Unit::Ms, stormy.ms(990)),
        Figure::new("calm p99", Unit::Ms, calm.ms(990)),
        Figure::new("publisher p99 to calm", Unit::Times, stormy.ms(990) / calm.ms(990)),
    ];
    figures.extend(spent.figures("events", tally.events()));
    figures
}

/// A publisher in a thread of its own, so that it waits for the hub and not for the readers that all
/// share this process's one.
struct Aside {
    delays: Arc<Mutex<Vec<u32>>>,
    stopped: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Aside {
    fn start(target: Target, mut request: Request) -> Self {
        let (delays, stopped) = (Arc::<Mutex<Vec<u32>>>::default(), Arc::<AtomicBool>::default());
        let (own, until) = (Arc::clone(&delays), Arc::clone(&stopped));
        let publish = async move {
            let mut publisher = Publisher::connect(&target).await;
            while !until.load(Ordering::Relaxed) {
                let sent = Instant::now();
                publisher.ask(request.stamped()).await;
                own.lock().unwrap().push(micros(sent));
            }
        };
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let thread = thread::spawn(move || runtime.block_on(publish));
        Self { delays, stopped, thread }
    }

    /// Those since they were asked for last.
    fn delays(&self) -> Delays {
        Delays::of(std::mem::take(&mut self.delays.lock().unwrap()))
    }

    fn stop(self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}
