//! What a reader has decoded lately, within a bound.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Keeps the most recently used values up to a total weight. One value may be heavier than that: it is handed out
/// and not kept. What is not kept any more and still held by somebody is not made a second time.
pub(crate) struct Cache<K, V> {
    inner: Mutex<Inner<K, V>>,
    max: u64,
}

struct Inner<K, V> {
    values: HashMap<K, (Arc<V>, u64, u64)>,
    /// Values that are not kept.
    held: HashMap<K, Weak<V>>,
    weight: u64,
    clock: u64,
}

impl<K: Hash + Eq + Copy, V> Cache<K, V> {
    pub(crate) fn new(max: u64) -> Self {
        Self {
            inner: Mutex::new(Inner {
                values: HashMap::new(),
                held: HashMap::new(),
                weight: 0,
                clock: 0,
            }),
            max,
        }
    }

    /// The value under `key`, made by `make` (with its weight) if it is not there. Two threads may both make it.
    pub(crate) fn get<E>(&self, key: K, make: impl FnOnce() -> Result<(V, u64), E>) -> Result<Arc<V>, E> {
        {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.clock += 1;
            let now = inner.clock;
            if let Some((value, _, used)) = inner.values.get_mut(&key) {
                *used = now;
                return Ok(Arc::clone(value));
            }
            if let Some(value) = inner.held.get(&key).and_then(Weak::upgrade) {
                return Ok(value);
            }
        }
        let (value, weight) = make()?;
        let value = Arc::new(value);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if weight > self.max {
            inner.forget();
            inner.held.insert(key, Arc::downgrade(&value));
            return Ok(value);
        }
        let now = inner.clock;
        if let Some((_, old, _)) = inner.values.insert(key, (Arc::clone(&value), weight, now)) {
            inner.weight = inner.weight.saturating_sub(old);
        }
        inner.weight = inner.weight.saturating_add(weight);
        if inner.weight > self.max {
            inner.evict(self.max / 4 * 3);
        }
        Ok(value)
    }
}

impl<K: Hash + Eq + Copy, V> Inner<K, V> {
    /// Drops the longest unused until the weight is at most `to`. A quarter at a time, so that sorting pays.
    fn evict(&mut self, to: u64) {
        let mut ages: Vec<(u64, K)> = self.values.iter().map(|(k, (_, _, used))| (*used, *k)).collect();
        ages.sort_unstable_by_key(|(used, _)| *used);
        for (_, key) in ages {
            if self.weight <= to {
                break;
            }
            if let Some((value, weight, _)) = self.values.remove(&key) {
                self.weight = self.weight.saturating_sub(weight);
                self.held.insert(key, Arc::downgrade(&value));
            }
        }
        self.forget();
    }

    /// What nobody holds any more is forgotten: one pass over those that are not kept.
    fn forget(&mut self) {
        self.held.retain(|_, value| value.strong_count() > 0);
    }
}

impl<K, V> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("max", &self.max)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_stays_under_its_bound_and_keeps_what_was_used_last() {
        let cache = Cache::<u32, u32>::new(100);
        let mut made = 0;
        for i in 0..1000 {
            cache.get(i, || Ok::<_, ()>((i, 10))).unwrap();
            assert_eq!(
                *cache
                    .get(0, || {
                        made += 1;
                        Ok::<_, ()>((0, 10))
                    })
                    .unwrap(),
                0
            );
            assert!(cache.inner.lock().unwrap().weight <= 100);
        }
        assert_eq!(made, 0, "0 was always used last but one and never dropped");
        assert_eq!(
            *cache.get(5, || Ok::<_, ()>((7, 1000))).unwrap(),
            7,
            "too heavy to keep, still handed out"
        );
    }

    #[test]
    fn what_somebody_holds_is_not_made_twice() {
        let cache = Cache::<u32, u32>::new(100);
        for weight in [10, 1000] {
            let held = cache.get(weight, || Ok::<_, ()>((1, u64::from(weight)))).unwrap();
            for i in 2000..2100 {
                cache.get(i, || Ok::<_, ()>((i, 10))).unwrap();
            }
            let again = cache.get(weight, || Ok::<_, ()>((2, 10))).unwrap();
            assert!(Arc::ptr_eq(&held, &again));
            drop((held, again));
            for i in 2000..2100 {
                cache.get(i, || Ok::<_, ()>((i, 10))).unwrap();
            }
            assert_eq!(*cache.get(weight, || Ok::<_, ()>((3, 10))).unwrap(), 3);
        }
        assert!(cache.inner.lock().unwrap().held.len() <= 1);
    }
}
