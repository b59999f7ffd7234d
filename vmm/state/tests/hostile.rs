//! Whatever a file holds, it is read as it was written or refused with the place of the damage.

use proptest::prelude::*;
use state::{Damage, MAX_NAME, MAX_PAYLOAD, Sections};

fn sample() -> Sections {
    let mut state = Sections::default();
    state.add("about", 1, br#"{"name":"web"}"#.to_vec()).unwrap();
    state.add("cpu/0", 3, vec![7; 1000]).unwrap();
    state.add("empty", 1, Vec::new()).unwrap();
    state
}

/// Without where the sections lie, which only those have that were read.
fn plain(state: &Sections) -> Vec<(String, u32, Vec<u8>)> {
    state.iter().map(|(name, s)| (name.to_owned(), s.version, s.payload.clone())).collect()
}

#[test]
fn each_changed_bit_is_noticed() {
    let bytes = sample().to_bytes();
    assert_eq!(plain(&Sections::from_bytes(&bytes).unwrap()), plain(&sample()));
    for at in 0..bytes.len() {
        for bit in [0, 3, 7] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            assert!(Sections::from_bytes(&damaged).is_err(), "byte {at}");
        }
    }
}

#[test]
fn the_place_of_damage_is_told() {
    let bytes = sample().to_bytes();
    let at = bytes.windows(8).position(|bytes| bytes == [7; 8]).unwrap();
    let mut damaged = bytes.clone();
    damaged[at + 500] ^= 1;
    let damage = Sections::from_bytes(&damaged).unwrap_err();
    assert_eq!(damage.section.as_deref(), Some("cpu/0"));
    assert_eq!(damage.offset, at as u64);
    assert!(damage.to_string().contains("in the section \"cpu/0\""), "{damage}");
    assert_eq!(Sections::from_bytes(&bytes).unwrap().get("cpu/0").unwrap().offset, at as u64);
}

#[test]
fn each_cut_is_noticed() {
    let bytes = sample().to_bytes();
    for len in 0..bytes.len() {
        assert!(Sections::from_bytes(&bytes[..len]).is_err(), "{len} bytes");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(Sections::from_bytes(&longer).is_err());
}

#[test]
fn what_could_not_be_read_is_not_written() {
    let mut state = sample();
    let mut refused =
        |name: &str, len: usize| -> Damage { state.add(name, 1, vec![0; len]).unwrap_err() };
    refused("", 1);
    refused("about", 1);
    refused("a\nb", 1);
    refused(&"x".repeat(MAX_NAME + 1), 1);
    refused("long", MAX_PAYLOAD + 1);
}

proptest! {
    #[test]
    fn what_is_written_is_read(sections in prop::collection::btree_map(
        "[a-z/0-9 ]{1,20}", (any::<u32>(), prop::collection::vec(any::<u8>(), 0..200)), 0..10))
    {
        let mut state = Sections::default();
        for (name, (version, payload)) in sections {
            state.add(&name, version, payload).unwrap();
        }
        let again = Sections::from_bytes(&state.to_bytes()).unwrap();
        prop_assert_eq!(plain(&again), plain(&state));
    }

    #[test]
    fn any_bytes_are_harmless(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        at in 0usize..1200,
    ) {
        let _ = Sections::from_bytes(&bytes);
        let mut damaged = sample().to_bytes();
        let at = at.min(damaged.len());
        let end = damaged.len().min(at + bytes.len());
        damaged[at..end].copy_from_slice(&bytes[..end - at]);
        let is_whole = damaged == sample().to_bytes();
        prop_assert_eq!(Sections::from_bytes(&damaged).is_ok(), is_whole);
    }
}
