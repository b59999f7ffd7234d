//! The parameters behind a path's question mark.

/// What a stream's client may choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// How many lines of the past to begin with.
    pub tail: Option<u64>,
    /// Whether to go on with what comes.
    pub follow: Option<bool>,
}

impl Query {
    /// Reads the parameters, of which only these are allowed. The error is for the client.
    pub fn parse(text: &str, allowed: &[&str]) -> Result<Query, String> {
        let mut query = Query::default();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let bad = |wanted: &str| format!("the parameter {name} must be {wanted}");
            match name {
                _ if !allowed.contains(&name) => {
                    return Err(format!("there is no parameter {name:?} here"));
                }
                "tail" => query.tail = Some(value.parse().map_err(|_| bad("a number of lines"))?),
                "follow" => {
                    query.follow = Some(value.parse().map_err(|_| bad("true or false"))?);
                }
                _ => return Err(format!("there is no parameter {name:?}")),
            }
        }
        Ok(query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read() {
        let all = ["tail", "follow"];
        assert_eq!(Query::parse("", &all), Ok(Query::default()));
        let both = Query { tail: Some(9), follow: Some(true) };
        assert_eq!(Query::parse("tail=9&follow=true", &all), Ok(both));
        for bad in ["tail", "tail=", "tail=-1", "follow=yes", "x=1", "follow"] {
            assert!(Query::parse(bad, &all).is_err(), "{bad}");
        }
        assert!(Query::parse("tail=9", &["follow"]).is_err());
    }
}
