//! Blocks that the translator made, of as many kinds as there are: all are accepted. None is
//! after a byte of it was changed, unless it still harms nobody; and nothing panics.

mod common;

use checker::{Block, Checker, Retry, Stubs};
use common::layout;
use proptest::prelude::*;

/// A line of the file: a block's address, its near entry, its view, its first exit, how many of
/// them it has, those that branch, places to resume at, exits with places to retry them, links, the
/// stubs, flags that it may change, whether it may read the time stamp counter, and its code.
struct Golden {
    address: u64,
    near: u32,
    view: usize,
    exits: std::ops::Range<u32>,
    branches: Vec<u32>,
    resumes: Vec<u32>,
    retries: Vec<Retry>,
    links: Vec<u32>,
    stubs: Stubs<'static>,
    flags: u64,
    time: bool,
    code: Vec<u8>,
}

impl Golden {
    fn block(&self) -> Block<'_> {
        Block {
            code: &self.code,
            address: self.address,
            far: 0,
            near: self.near,
            resumes: &self.resumes,
            retries: &self.retries,
            exits: self.exits.clone(),
            branches: &self.branches,
            links: &self.links,
            targets: &[],
            view: self.view,
            flags: self.flags,
            time: self.time,
            mirrored: None,
            stubs: self.stubs,
        }
    }
}

fn number(text: &str) -> u32 {
    text.parse().expect("a number")
}

fn list<T>(text: &str, item: impl Fn(&str) -> T) -> Vec<T> {
    if text == "-" { Vec::new() } else { text.split(',').map(item).collect() }
}

fn parse(line: &str) -> Golden {
    let words: Vec<&str> = line.split(' ').collect();
    let [
        address,
        near,
        view,
        first,
        exits,
        branches,
        resumes,
        retries,
        links,
        leave,
        crossing,
        branch,
        load,
        read_miss,
        write_miss,
        flags,
        time,
        code,
    ] = words[..]
    else {
        panic!("a line has 18 words, not {}", words.len());
    };
    let retry = |text: &str| {
        let (exit, at) = text.split_once(':').expect("an exit and a place");
        Retry { exit: number(exit), at: number(at) }
    };
    let byte = |i| u8::from_str_radix(&code[i..i + 2], 16).expect("a byte");
    Golden {
        address: number(address).into(),
        near: number(near),
        view: number(view) as usize,
        exits: number(first)..number(first) + number(exits),
        branches: list(branches, number),
        resumes: list(resumes, number),
        retries: list(retries, retry),
        links: list(links, number),
        stubs: Stubs {
            leave: number(leave).into(),
            leave_with_flags: u64::MAX,
            crossing: number(crossing).into(),
            branch: number(branch).into(),
            load_vectors: number(load).into(),
            misses: [number(read_miss).into(), number(write_miss).into()],
            strings: &[],
        },
        flags: number(flags).into(),
        time: number(time) != 0,
        code: (0..code.len()).step_by(2).map(byte).collect(),
    }
}

fn all() -> Vec<Golden> {
    include_str!("golden.txt").lines().map(parse).collect()
}

#[test]
fn what_the_translator_made_is_accepted() {
    let mut checker = Checker::new(layout());
    let all = all();
    assert!(all.len() > 20);
    for (line, golden) in all.iter().enumerate() {
        if let Err(violation) = checker.check(&golden.block()) {
            panic!("the block of line {}: {violation}", line + 1);
        }
    }
}

/// What a block was made for, changed: another view, other exits.
#[test]
fn for_another_purpose_they_are_refused() {
    let mut checker = Checker::new(layout());
    let (mut views, mut exits) = (0, 0);
    for golden in all() {
        for view in (0..3).filter(|&view| view != golden.view) {
            let mut block = golden.block();
            block.view = view;
            // Unless it touches no memory.
            views += usize::from(checker.check(&block).is_err());
        }
        let mut block = golden.block();
        block.exits.end -= 1;
        exits += 1;
        assert!(checker.check(&block).is_err(), "it leaves by its last exit");
    }
    assert!(views > exits, "most access memory: {views} of {exits}");
}

/// Each instruction but the first few is replaced by NOPs, one at a time: if that leaves a check
/// incomplete, the block is refused.
#[test]
fn without_one_part_of_a_check_they_are_refused() {
    let mut checker = Checker::new(layout());
    let mut refused = 0;
    for mut golden in all() {
        let code = golden.code.clone();
        for at in 0..code.len().saturating_sub(14) {
            // AND EBP, 2046; ADD RBX, [RSP+RBP*8+...]; and JA, which follows CMP RBX.
            let length = match &code[at..] {
                [0x81, 0xe5, 0xfe, 0x07, 0, 0, ..] => 6,
                [0x48, 0x03, 0x9c, 0xec, ..] => 8,
                [0x48, 0x81, 0xfb, _, 0x0f, 0, 0, 0x0f, 0x87, ..] => 13,
                _ => continue,
            };
            golden.code[at..at + length].fill(0x90);
            assert!(checker.check(&golden.block()).is_err(), "without the code at {at:#x}");
            golden.code.copy_from_slice(&code);
            refused += 1;
        }
    }
    assert!(refused > 100, "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn changed_bytes_never_panic(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut all = all();
        let golden = which.get_mut(&mut all);
        for (at, value) in changes {
            *at.get_mut(&mut golden.code) = value;
        }
        if is_cut {
            let length = cut.index(golden.code.len());
            golden.code.truncate(length);
        }
        let _ = Checker::new(layout()).check(&golden.block());
    }

    #[test]
    fn random_bytes_never_panic(
        code in prop::collection::vec(any::<u8>(), 0..400),
        address in any::<u64>(),
        entries in prop::collection::vec(any::<u32>(), 0..4),
        view in 0..4usize,
        exits in any::<std::ops::Range<u32>>(),
    ) {
        let first = entries.first().copied().unwrap_or(0) % 64;
        let retries: Vec<Retry> =
            entries.iter().map(|&at| Retry { exit: exits.start, at: at % 64 }).collect();
        let block = Block {
            code: &code,
            address,
            far: 0,
            near: first,
            resumes: &entries,
            retries: &retries,
            exits,
            branches: &entries,
            links: &entries,
            targets: &[address],
            view,
            flags: u64::from(first),
            time: true,
            mirrored: None,
            stubs: Stubs { leave: !address, leave_with_flags: !address, crossing: 4, branch: 1, load_vectors: address, misses: [2, 3], strings: &[] },
        };
        let _ = Checker::new(layout()).check(&block);
    }

    /// Nothing but small whole instructions, so that more than the first few are looked at.
    #[test]
    fn random_instructions_never_panic(
        picks in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..60),
    ) {
        const PIECES: &[&[u8]] = &[
            &[0x48, 0x8b, 0xd9],
            &[0xc4, 0xe3, 0xfb, 0xf0, 0xeb, 0x0b],
            &[0x81, 0xe5, 0xfe, 0x07, 0, 0],
            &[0x48, 0x03, 0x9c, 0xec, 0x70, 0x01, 0, 0],
            &[0x48, 0x81, 0xfb, 0xf8, 0x0f, 0, 0],
            &[0x0f, 0x87, 0, 0, 0, 0],
            &[0x48, 0x03, 0x9c, 0xec, 0x78, 0x01, 0, 0],
            &[0x48, 0x89, 0x4c, 0x24, 0x20],
            &[0x68, 0, 0, 0, 0],
            &[0xe8, 0, 0, 0, 0],
            &[0x48, 0x8b, 0x0b],
            &[0x48, 0x8d, 0x5b, 0x7f],
            &[0x48, 0x81, 0xc3, 0xff, 0xff, 0xff, 0x7f],
            &[0x48, 0x87, 0xdd],
            &[0x74, 0x00],
            &[0xeb, 0x00],
            &[0xbd, 0, 0, 0, 0],
            &[0xe9, 0, 0, 0, 0],
            &[0x8b, 0xeb],
            &[0xc1, 0xed, 0x0c],
            &[0x33, 0xeb],
            &[0x48, 0xa3, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x48, 0x0f, 0xab, 0x0b],
        ];
        let mut code = Vec::new();
        for (piece, tweak) in picks {
            code.extend_from_slice(PIECES[piece.index(PIECES.len())]);
            if let Some(last) = code.last_mut()
                && tweak < 64
            {
                *last = tweak;
            }
        }
        let block = Block {
            code: &code,
            address: 0x1000,
            far: 0,
            near: 0,
            resumes: &[],
            retries: &[],
            exits: 0..100,
            branches: &[],
            links: &[],
            targets: &[],
            view: 0,
            flags: 0,
            time: false,
            mirrored: None,
            stubs: Stubs { leave: 0, leave_with_flags: 0, crossing: 0x8, branch: 0x10, load_vectors: 0x20, misses: [0x40, 0x60], strings: &[] },
        };
        let _ = Checker::new(layout()).check(&block);
    }
}
