//! The file that gcc compiles: some three thousand lines that look like a program, the same each
//! time.

use std::fmt::Write;

/// How many parts it has; `PARTS` says how many of them are compiled.
const PARTS: u32 = 36;

/// The text.
pub fn source() -> String {
    let mut text = String::from(
        "#include <stdint.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n\n\
         struct record {\n    uint32_t key, flags;\n    double weight;\n    char name[24];\n    \
         struct record *next;\n};\n\n",
    );
    let mut random = Random(12345);
    for part in 0..PARTS {
        let _ = writeln!(text, "#if PARTS > {part}");
        part_of(&mut text, part, &mut random);
        text.push_str("#endif\n\n");
    }
    text
}

/// A table, and four functions that use it: a state machine, a list, a loop over doubles, text.
fn part_of(text: &mut String, part: u32, random: &mut Random) {
    let size = 16 + random.below(16);
    let _ = write!(text, "static const uint32_t table_{part}[{size}] = {{");
    for _ in 0..size {
        let _ = write!(text, " {},", random.below(1 << 20));
    }
    text.push_str(" };\n\n");

    let _ = writeln!(text, "int machine_{part}(const unsigned char *p, size_t n, uint32_t *out)");
    text.push_str("{\n    uint32_t state = 0, sum = 0;\n    for (size_t i = 0; i < n; i++) {\n");
    text.push_str("        switch (state) {\n");
    let states = 5 + random.below(5);
    for state in 0..states {
        let (mask, shift) = (random.below(255) + 1, random.below(13) + 1);
        let (target, other) = (random.below(states), random.below(states));
        let _ = writeln!(
            text,
            "        case {state}:\n            sum += table_{part}[(p[i] ^ sum >> {shift}) % {size}];\n            \
             state = (p[i] & {mask}) > {} ? {target} : {other};\n            break;",
            mask / 2
        );
    }
    text.push_str("        default:\n            return -1;\n        }\n    }\n");
    text.push_str("    *out = sum;\n    return (int)state;\n}\n\n");

    let _ = writeln!(
        text,
        "struct record *find_{part}(struct record *list, uint32_t key, double limit)\n{{\n    \
         struct record *best = NULL;\n    for (struct record *r = list; r; r = r->next) {{\n        \
         if ((r->flags & {}) == 0 || r->weight > limit * {}.5)\n            continue;\n        \
         if (r->key == key || strncmp(r->name, \"part{part}\", sizeof r->name) == 0)\n            \
         return r;\n        if (!best || r->weight < best->weight)\n            best = r;\n    }}\n    \
         return best;\n}}\n",
        1 << random.below(16),
        random.below(9)
    );

    let _ = writeln!(
        text,
        "double blend_{part}(double *a, const double *b, int n)\n{{\n    double sum = {}.25;\n    \
         for (int i = {}; i < n; i++) {{\n        double d = a[i] - b[n - 1 - i];\n        \
         a[i] = d * d + a[i / 2] * {}.125;\n        sum += a[i] > b[i] ? d : -d / (1 + b[i] * b[i]);\n    \
         }}\n    return sum;\n}}\n",
        random.below(50),
        1 + random.below(3),
        random.below(50)
    );

    let _ = writeln!(
        text,
        "int print_{part}(char *out, size_t size, const struct record *r)\n{{\n    size_t used = 0;\n    \
         for (; r && used < size; r = r->next) {{\n        uint32_t crc;\n        \
         int state = machine_{part}((const unsigned char *)r->name, strlen(r->name), &crc);\n        \
         int n = snprintf(out + used, size - used, \"%u:%s:%g:%d:%x\\n\", r->key, r->name,\n                         \
         r->weight * {}, state, crc);\n        if (n < 0)\n            return -1;\n        \
         used += (size_t)n;\n    }}\n    return (int)used;\n}}",
        random.below(90) + 1
    );
}

/// A linear congruential generator, for the same text each time.
struct Random(u32);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_middle_sized_and_always_the_same() {
        let text = source();
        assert!((3000..8000).contains(&text.lines().count()), "{}", text.lines().count());
        assert_eq!(text, source());
        assert_eq!(text.matches("#if PARTS").count(), 36);
    }
}
