//! Shares equal results: one allocation for all devices with the same destinations.

use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, Weak};

use foldhash::{HashMap, HashMapExt};

use crate::model::Profile;

/// Profiles found again by what they were made of, and shared by what they contain.
///
/// Keeps no profile alive: one without holders is freed at once. What remains of its
/// entry is swept when the table has doubled, so that an insertion costs O(1) over time.
#[derive(Debug)]
pub struct Interner<K> {
    by_recipe: HashMap<K, Weak<Profile>>,
    by_content: HashMap<u64, Vec<Weak<Profile>>>,
    sweep_at: usize,
}

impl<K> Default for Interner<K> {
    fn default() -> Self {
        Self { by_recipe: HashMap::new(), by_content: HashMap::new(), sweep_at: 64 }
    }
}

impl<K: Eq + Hash> Interner<K> {
    /// The profile made of a recipe, if it is still held.
    pub fn get(&self, recipe: &K) -> Option<Arc<Profile>> {
        self.by_recipe.get(recipe).and_then(Weak::upgrade)
    }

    /// Shares what was made of a recipe with all who hold the same content.
    pub fn insert(&mut self, recipe: K, profile: Profile) -> Arc<Profile> {
        if self.by_recipe.len() >= self.sweep_at {
            self.sweep();
        }
        let profile = self.share(profile);
        self.by_recipe.insert(recipe, Arc::downgrade(&profile));
        profile
    }

    /// How many recipes and contents have an entry, held or not yet swept.
    #[cfg(test)]
    fn len(&self) -> (usize, usize) {
        (self.by_recipe.len(), self.by_content.len())
    }

    fn share(&mut self, profile: Profile) -> Arc<Profile> {
        let hash = self.by_content.hasher().hash_one(&profile);
        let equals = self.by_content.entry(hash).or_default();
        equals.retain(|known| known.strong_count() > 0);
        if let Some(known) =
            equals.iter().filter_map(Weak::upgrade).find(|known| **known == profile)
        {
            return known;
        }
        let profile = Arc::new(profile);
        equals.push(Arc::downgrade(&profile));
        profile
    }

    fn sweep(&mut self) {
        self.by_recipe.retain(|_, profile| profile.strong_count() > 0);
        self.by_content.retain(|_, equals| equals.iter().any(|known| known.strong_count() > 0));
        self.sweep_at = 64.max(self.by_recipe.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(address: u32) -> Profile {
        Profile { allow4: [(address, address)].into_iter().collect(), ..Profile::default() }
    }

    #[test]
    fn equal_contents_of_different_recipes_are_one() {
        let mut interner = Interner::default();
        let first = interner.insert("a", profile(1));
        let second = interner.insert("b", profile(1));
        assert!(Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&first, &interner.get(&"b").unwrap()));
        assert!(!Arc::ptr_eq(&first, &interner.insert("c", profile(2))));
        assert_eq!(interner.get(&"c"), None, "it had no holder");
    }

    #[test]
    fn unused_entries_do_not_accumulate() {
        let mut interner = Interner::default();
        let held = interner.insert(u32::MAX, profile(u32::MAX));
        for address in 0..10_000 {
            interner.insert(address, profile(address));
        }
        let (recipes, contents) = interner.len();
        assert!(recipes <= 64 && contents <= 128, "{recipes} {contents}");
        assert!(Arc::ptr_eq(&held, &interner.get(&u32::MAX).unwrap()));
    }
}
