//! What this engine counts, by the names that the world outside knows (docs/stats.md).

use accel::Statistics;
use x86::Stats;

use crate::transcode::cache::Fill;
use crate::transcode::engine::Counters;

/// The statistics of one processor: of its interpreter and of its transcoder, zeroes if it has
/// none.
pub(crate) fn of(interpreter: &Stats, transcoder: &Counters, fill: &Fill) -> Statistics {
    // All fields are named, so that none that is added is forgotten here.
    let &Stats { instructions, blocks, decoded, tlb_misses, exceptions } = interpreter;
    let &Counters {
        translated,
        entered,
        misses,
        filled,
        branches,
        chains,
        interpreted,
        resumed,
        attention,
        invalidated,
        flushed,
        cold,
        unsettled,
        jumps_forgotten,
        refused,
        mirrored,
        not_mirrored,
    } = transcoder;
    let &Fill { bytes, capacity, exits, exits_capacity, blocks: code_blocks } = fill;
    Statistics {
        counts: vec![
            ("entries", entered),
            ("exits_branch", branches),
            ("exits_chain", chains),
            ("exits_miss", misses),
            ("exits_interpret", interpreted),
            ("mirror_fills", mirrored),
            ("mirror_faults", not_mirrored),
            ("resumes", resumed),
            ("attentions", attention),
            ("tlb_fills", filled),
            ("translations", translated),
            ("translations_refused", refused),
            ("translations_deferred", unsettled),
            ("invalidations", invalidated),
            ("code_flushes", flushed),
            ("jump_cache_flushes", jumps_forgotten),
            ("cold_runs", cold),
            ("interpreted_instructions", instructions),
            ("interpreted_blocks", blocks),
            ("decoded_blocks", decoded),
            ("interpreter_tlb_misses", tlb_misses),
            ("exceptions", exceptions),
        ],
        levels: vec![
            ("code_bytes", bytes as u64),
            ("code_bytes_capacity", capacity as u64),
            ("code_blocks", code_blocks as u64),
            ("code_exits", exits as u64),
            ("code_exits_capacity", exits_capacity as u64),
        ],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_name_stands_for_one_number() {
        let statistics = of(&Stats::default(), &Counters::default(), &Fill::default());
        let names: Vec<&str> =
            statistics.counts.iter().chain(&statistics.levels).map(|&(name, _)| name).collect();
        let distinct: HashSet<&str> = names.iter().copied().collect();
        assert_eq!(distinct.len(), names.len());
        for name in names {
            assert!(name.bytes().all(|b| b == b'_' || b.is_ascii_lowercase()), "{name}");
        }
    }

    #[test]
    fn numbers_stand_under_their_names() {
        let interpreter = Stats { instructions: 1, exceptions: 2, ..Stats::default() };
        let transcoder = Counters { translated: 3, misses: 4, filled: 5, ..Counters::default() };
        let fill = Fill { bytes: 6, blocks: 7, ..Fill::default() };
        let statistics = of(&interpreter, &transcoder, &fill);
        for (name, value) in [
            ("interpreted_instructions", 1),
            ("exceptions", 2),
            ("translations", 3),
            ("exits_miss", 4),
            ("tlb_fills", 5),
        ] {
            assert!(statistics.counts.contains(&(name, value)), "{name}");
        }
        assert!(statistics.levels.contains(&("code_bytes", 6)));
        assert!(statistics.levels.contains(&("code_blocks", 7)));
    }
}
