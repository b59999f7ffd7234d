//! The parameters behind a path's question mark.

/// What a client may choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// How many lines of the past to begin with.
    pub tail: Option<u64>,
    /// Whether to go on with what comes.
    pub follow: Option<bool>,
    /// A port in the guest.
    pub port: Option<u32>,
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
                "port" => query.port = Some(value.parse().map_err(|_| bad("a port's number"))?),
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
        let both = Query { tail: Some(9), follow: Some(true), port: None };
        assert_eq!(Query::parse("tail=9&follow=true", &all), Ok(both));
        for bad in ["tail", "tail=", "tail=-1", "follow=yes", "x=1", "follow"] {
            assert!(Query::parse(bad, &all).is_err(), "{bad}");
        }
        assert!(Query::parse("tail=9", &["follow"]).is_err());
        assert_eq!(Query::parse("port=1023", &["port"]).map(|query| query.port), Ok(Some(1023)));
        for bad in ["port", "port=ssh", "port=-1", "port=4294967296"] {
            assert!(Query::parse(bad, &["port"]).is_err(), "{bad}");
        }
    }
}
