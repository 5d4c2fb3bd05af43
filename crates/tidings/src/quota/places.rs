//! Places: how many of something one holder has open at once.
//!
//! The rule: a place is given back when it is dropped, so whoever keeps it inside the thing that it
//! is for (a connection, a response's body) cannot forget it, however that ends.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::elsewhere::{Elsewhere, Holder};

/// Places of one kind. Remembers only holders that have one, so its memory is that of the places.
#[derive(Debug)]
pub(crate) struct Places<K: Eq + Hash> {
    each_max: usize,
    taken: Mutex<HashMap<K, usize>>,
    /// Those that the same holders have on other nodes.
    elsewhere: Option<Arc<Elsewhere>>,
}

/// One holder's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Eq + Hash + Holder> {
    places: Arc<Places<K>>,
    holder: K,
}

impl<K: Eq + Hash + Clone + Holder> Places<K> {
    /// Places of which each holder may have so many.
    pub(crate) fn new(each_max: usize) -> Arc<Self> {
        Arc::new(Self { each_max, taken: Mutex::default(), elsewhere: None })
    }

    /// Places of which each holder may have so many on all nodes together.
    pub(crate) fn of_all_nodes(each_max: usize, elsewhere: &Arc<Elsewhere>) -> Arc<Self> {
        let elsewhere = (each_max < usize::MAX).then(|| Arc::clone(elsewhere));
        Arc::new(Self { each_max, taken: Mutex::default(), elsewhere })
    }

    /// A place for the holder, unless it has all of its own.
    pub(crate) fn take(self: &Arc<Self>, holder: K) -> Option<Place<K>> {
        let mut taken = self.taken();
        let count = taken.get(&holder).copied().unwrap_or_default();
        let elsewhere = self.elsewhere.as_ref().map_or(0, |elsewhere| elsewhere.of(&holder));
        if count.saturating_add(elsewhere) >= self.each_max {
            return None;
        }
        taken.insert(holder.clone(), count + 1);
        self.tell(&holder, count + 1);
        drop(taken);
        Some(Place { places: Arc::clone(self), holder })
    }
}

impl<K: Eq + Hash + Holder> Places<K> {
    /// Has the other nodes told, if there are any.
    fn tell(&self, holder: &K, count: usize) {
        if let Some(elsewhere) = &self.elsewhere {
            elsewhere.tell(holder, count);
        }
    }
}

impl<K: Eq + Hash> Places<K> {
    fn taken(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many holders have a place.
    #[cfg(test)]
    pub(crate) fn holders(&self) -> usize {
        self.taken().len()
    }
}

impl<K: Eq + Hash + Holder> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(count) = taken.get_mut(&self.holder) {
            *count -= 1;
            let left = *count;
            if left == 0 {
                taken.remove(&self.holder);
            }
            self.places.tell(&self.holder, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Holder for &str {
        fn name(&self) -> String {
            (*self).to_owned()
        }
    }

    #[test]
    fn each_holder_has_its_places_and_gets_them_back() {
        let places = Places::new(2);
        let first = places.take("a").unwrap();
        let _second = places.take("a").unwrap();
        assert!(places.take("a").is_none());
        let other = places.take("b").unwrap();
        drop((first, other));
        assert_eq!(places.holders(), 1, "a holder without a place is forgotten");
        assert!(places.take("a").is_some());
    }

    #[test]
    fn a_panic_gives_the_place_back() {
        let places = Places::new(1);
        let taken = places.take("a").unwrap();
        let panicked = std::thread::spawn(move || {
            let _taken = taken;
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        assert!(places.take("a").is_some());
    }
}
