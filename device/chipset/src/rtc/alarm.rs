//! When an alarm goes off.

/// What the alarm bytes ask for. `None`: any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// 0 to 23.
    pub hour: Option<u8>,
    /// 0 to 59.
    pub minute: Option<u8>,
    /// 0 to 59.
    pub second: Option<u8>,
}

impl Alarm {
    /// The first second after `after` at which the alarm goes off. `None`: never, for a field
    /// asks for what no clock shows.
    pub fn next(self, after: i64) -> Option<i64> {
        let possible = |field: Option<u8>, limit| field.is_none_or(|value| value < limit);
        if !(possible(self.hour, 24) && possible(self.minute, 60) && possible(self.second, 60)) {
            return None;
        }
        let matches =
            |field: Option<u8>, value: i64| field.is_none_or(|want| i64::from(want) == value);
        let mut at = after.checked_add(1)?;
        // Each step goes to the next second, minute or hour that may match: at most 23 + 59 + 59.
        loop {
            let (hour, minute, second) = (
                at.div_euclid(3600).rem_euclid(24),
                at.div_euclid(60).rem_euclid(60),
                at.rem_euclid(60),
            );
            let step = if !matches(self.hour, hour) {
                3600 - minute * 60 - second
            } else if !matches(self.minute, minute) {
                60 - second
            } else if !matches(self.second, second) {
                1
            } else {
                return Some(at);
            };
            at = at.checked_add(step)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_trying_each_second(
            after in -100_000i64..100_000,
            hour in prop::option::of(0u8..26),
            minute in prop::option::of(0u8..62),
            second in prop::option::of(0u8..62),
        ) {
            let alarm = Alarm { hour, minute, second };
            let hit = |t: &i64| {
                let of_day = t.rem_euclid(86_400);
                let fields = [(hour, of_day / 3600), (minute, of_day / 60 % 60), (second, of_day % 60)];
                fields.iter().all(|(want, is)| want.is_none_or(|want| i64::from(want) == *is))
            };
            prop_assert_eq!(alarm.next(after), (after + 1..=after + 86_400).find(hit));
        }
    }
}
