//! `--cpu-affinity`.

use std::str::FromStr;

use vmm_api::MAX_HOST_CPUS;

/// Which processors of the host a guest's may run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AffinityArg(pub Vec<Vec<u32>>);

impl FromStr for AffinityArg {
    type Err = String;

    fn from_str(text: &str) -> Result<AffinityArg, String> {
        let mut pins: Vec<Vec<u32>> = Vec::new();
        for (index, part) in text.split(',').enumerate() {
            let (vcpu, cpus) = match part.split_once('=') {
                Some((vcpu, cpus)) => (number(vcpu)? as usize, cpus),
                None => (index, part),
            };
            if vcpu >= vmm_api::MAX_CPUS as usize {
                return Err(format!("a guest has no processor {vcpu}"));
            }
            let (first, last) = cpus.split_once('-').unwrap_or((cpus, cpus));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("{cpus:?} is no range: the first is larger"));
            }
            if pins.len() <= vcpu {
                pins.resize(vcpu + 1, Vec::new());
            }
            if let Some(pin) = pins.get_mut(vcpu) {
                pin.extend(first..=last);
            }
        }
        Ok(AffinityArg(pins))
    }
}

fn number(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|&number| number < MAX_HOST_CPUS);
    number.ok_or_else(|| format!("{text:?} is no processor's number: write 2,3 or 0=2,1=4-7"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read() {
        let pins = |text: &str| text.parse::<AffinityArg>().map(|arg| arg.0);
        assert_eq!(pins("2"), Ok(vec![vec![2]]));
        assert_eq!(pins("2,3"), Ok(vec![vec![2], vec![3]]));
        assert_eq!(pins("0=2,1=3"), Ok(vec![vec![2], vec![3]]));
        assert_eq!(pins("1=4-6"), Ok(vec![vec![], vec![4, 5, 6]]));
        assert_eq!(pins("0=1,0=3"), Ok(vec![vec![1, 3]]));
        for bad in ["", "a", "1=", "=1", "2-1", "64=0", "0=8192", "0=0-99999999", "-1", "1,,2"] {
            assert!(pins(bad).is_err(), "{bad}");
        }
    }
}
