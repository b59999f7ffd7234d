//! Seconds since 1970 and the proleptic Gregorian calendar.

/// A point in time as the chip's registers show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateTime {
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

const DAY: i64 = 86_400;
/// Days in 400 years, after which the calendar repeats.
const CYCLE: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01. Years that start in March have the leap day at their end.
const EPOCH: i64 = 719_468;

impl DateTime {
    /// The time `seconds` after 1970-01-01 00:00 UTC.
    pub fn from_seconds(seconds: i64) -> Self {
        let of_day = seconds.rem_euclid(DAY);
        let days = seconds.div_euclid(DAY) + EPOCH;
        let (cycle, day) = (days.div_euclid(CYCLE), days.rem_euclid(CYCLE));
        // Remove the leap days before `day` (every 4 years, not every 100, but every 400).
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let of_year = day - (365 * year + year / 4 - year / 100);
        // Months from March: 31, 30, 31, 30, 31 days, and again; 153 days in each five.
        let month = (5 * of_year + 2) / 153;
        let first = (153 * month + 2) / 5;
        let month = if month < 10 { month + 3 } else { month - 9 };
        Self {
            year: 400 * cycle + year + i64::from(month <= 2),
            month: month as u8,
            day: (of_year - first + 1) as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// The inverse. Fields out of range count on: 61 seconds are a minute and a second.
    pub fn to_seconds(self) -> i64 {
        let month = i64::from(self.month);
        let year = self.year - i64::from(month <= 2);
        let (cycle, year) = (year.div_euclid(400), year.rem_euclid(400));
        let month = if month > 2 { month - 3 } else { month + 9 };
        let of_year = (153 * month + 2) / 5 + i64::from(self.day) - 1;
        let days = cycle * CYCLE + 365 * year + year / 4 - year / 100 + of_year - EPOCH;
        days * DAY
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }

    /// The day of the week, 1 (Sunday) to 7.
    pub fn day_of_week(self) -> u8 {
        let days = self.to_seconds().div_euclid(DAY);
        ((days + 4).rem_euclid(7) + 1) as u8 // 1970-01-01 was a Thursday
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_days() {
        let at = |year, month, day| DateTime { year, month, day, hour: 0, minute: 0, second: 0 };
        assert_eq!(at(1970, 1, 1).to_seconds(), 0);
        assert_eq!(at(2000, 2, 29).to_seconds(), 951_782_400);
        assert_eq!(at(2000, 2, 29).day_of_week(), 3);
        assert_eq!(at(1900, 3, 1).to_seconds() - at(1900, 2, 28).to_seconds(), DAY);
        assert_eq!(at(2024, 12, 31).day_of_week(), 3);
        assert_eq!(
            DateTime::from_seconds(1_700_000_000),
            DateTime { year: 2023, month: 11, day: 14, hour: 22, minute: 13, second: 20 }
        );
    }

    proptest! {
        #[test]
        fn there_and_back(seconds in -62_000_000_000i64..253_000_000_000) {
            let date = DateTime::from_seconds(seconds);
            prop_assert_eq!(date.to_seconds(), seconds);
            prop_assert!((1..=12).contains(&date.month) && (1..=31).contains(&date.day));
            prop_assert!(date.hour < 24 && date.minute < 60 && date.second < 60);
            prop_assert!((1..=7).contains(&date.day_of_week()));
        }
    }
}
