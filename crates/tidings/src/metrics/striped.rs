//! Numbers that every core counts up at once: a counter and a histogram.
//!
//! The rule: counting takes no lock, and threads rarely write the same line of memory. The library's
//! histogram has a mutex, which every delivery of every core would wait for.

use std::{
    array,
    fmt::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// Copies of each number; threads take them in turn. More than the cores that deliver would only
/// cost memory.
const STRIPES: usize = 8;
/// Sum and buckets of a histogram: two lines of memory, so that stripes do not share one.
const SLOTS: usize = 16;

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static STRIPE: usize = THREADS.fetch_add(1, Ordering::Relaxed) % STRIPES;
}

/// Numbers that are only ever added to.
#[derive(Debug)]
struct Striped<const N: usize>([Stripe<N>; STRIPES]);

#[derive(Debug)]
#[repr(align(128))]
struct Stripe<const N: usize>([AtomicU64; N]);

impl<const N: usize> Default for Striped<N> {
    fn default() -> Self {
        Self(array::from_fn(|_| Stripe(array::from_fn(|_| AtomicU64::new(0)))))
    }
}

impl<const N: usize> Striped<N> {
    /// The slots of this thread.
    fn mine(&self) -> &[AtomicU64; N] {
        let [first, ..] = &self.0;
        &STRIPE.with(|stripe| self.0.get(*stripe)).unwrap_or(first).0
    }

    fn sum(&self, slot: usize) -> u64 {
        let of = |stripe: &Stripe<N>| stripe.0.get(slot).map(|slot| slot.load(Ordering::Relaxed));
        self.0.iter().filter_map(of).fold(0, u64::wrapping_add)
    }
}

/// Counts what happens very often.
#[derive(Debug, Clone, Default)]
pub struct BusyCounter(Arc<Striped<1>>);

impl BusyCounter {
    /// Adds to it.
    pub fn inc_by(&self, count: u64) {
        let [slot] = self.0.mine();
        slot.fetch_add(count, Ordering::Relaxed);
    }

    /// How much there is.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.sum(0)
    }
}

impl TypedMetric for BusyCounter {
    const TYPE: MetricType = MetricType::Counter;
}

impl EncodeMetric for BusyCounter {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), Error> {
        encoder.encode_counter::<NoLabelSet, _, u64>(&self.get(), None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// Counts values by how large they are.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Buckets>);

#[derive(Debug)]
struct Buckets {
    /// Largest value of each bucket but the last, which has none. At most [`SLOTS`] less two.
    bounds: &'static [u64],
    /// What one is in the metric's unit.
    one: f64,
    /// The sum, then the buckets.
    slots: Striped<SLOTS>,
}

impl Histogram {
    /// Of durations; bounds in microseconds.
    #[must_use]
    pub fn of_durations(bounds: &'static [u64]) -> Self {
        Self(Arc::new(Buckets { bounds, one: 1e-6, slots: Striped::default() }))
    }

    /// Of numbers.
    #[must_use]
    pub fn of_numbers(bounds: &'static [u64]) -> Self {
        Self(Arc::new(Buckets { bounds, one: 1.0, slots: Striped::default() }))
    }

    /// Counts a number.
    pub fn observe(&self, value: u64) {
        let bucket = self.0.bounds.partition_point(|bound| *bound < value);
        let slots = self.0.slots.mine();
        let [sum, buckets @ ..] = slots;
        sum.fetch_add(value, Ordering::Relaxed);
        if let Some(bucket) = buckets.get(bucket).or(buckets.last()) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a duration.
    pub fn observe_duration(&self, duration: Duration) {
        self.observe(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// How many values were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        (1..SLOTS).map(|slot| self.0.slots.sum(slot)).sum()
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    #[allow(clippy::cast_precision_loss, reason = "bounds are small, and a sum need not be exact")]
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), Error> {
        let Buckets { bounds, one, slots } = &*self.0;
        let bounds = bounds.iter().map(|bound| *bound as f64 * one).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> =
            bounds.enumerate().map(|(place, bound)| (bound, slots.sum(place + 1))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = slots.sum(0) as f64 * one;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    #[test]
    fn a_value_is_in_the_first_bucket_that_holds_it() {
        let mut registry = Registry::default();
        let sizes = Histogram::of_numbers(&[1, 10]);
        registry.register("sizes", "Sizes", sizes.clone());
        for value in [0, 1, 2, 10, 11, 1000] {
            sizes.observe(value);
        }
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert_eq!(
            text,
            "# HELP sizes Sizes.\n# TYPE sizes histogram\nsizes_sum 1024.0\nsizes_count 6\n\
             sizes_bucket{le=\"1.0\"} 2\nsizes_bucket{le=\"10.0\"} 4\n\
             sizes_bucket{le=\"+Inf\"} 6\n# EOF\n"
        );
    }

    #[test]
    fn what_many_threads_count_is_all_there() {
        let (counter, durations) = (BusyCounter::default(), Histogram::of_durations(&[1000]));
        std::thread::scope(|scope| {
            for _ in 0..3 * STRIPES {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        counter.inc_by(2);
                        durations.observe_duration(Duration::from_millis(1));
                    }
                });
            }
        });
        assert_eq!(counter.get(), 3 * STRIPES as u64 * 2000);
        assert_eq!(durations.count(), 3 * STRIPES as u64 * 1000);
        assert_eq!(durations.0.slots.sum(0), 3 * STRIPES as u64 * 1_000_000);
    }
}
