//! Who may use the server: the names it answers to, the web pages that may call it, and its keys.
//!
//! A browser sends requests to this machine for any page that asks it to. A page from elsewhere is told apart by its
//! `Origin`, and one that got its own name to point here (DNS rebinding) by its `Host`; an address as `Host` is safe,
//! because no page from elsewhere has it. Keys are compared by digest and in full, so that the time tells nothing.

use std::net::IpAddr;

use sha2::{Digest, Sha256};

/// Who may use the server.
#[derive(Debug)]
pub struct Access {
    keys: Vec<[u8; 32]>,
    hosts: Vec<String>,
    origins: Vec<String>,
}

/// What a page's origin may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It is the server's own page.
    Own,
    /// It was allowed by `--allow-origin`: the browser is told so.
    Allowed,
    Foreign,
}

impl Access {
    pub fn new(keys: &[String], hosts: &[String], origins: &[String]) -> Self {
        let lower = |texts: &[String]| texts.iter().map(|text| text.to_ascii_lowercase()).collect();
        let origins: Vec<String> = lower(origins);
        Self {
            keys: keys.iter().map(|key| digest(key.as_bytes())).collect(),
            hosts: lower(hosts),
            origins: origins.iter().map(|origin| origin.trim_end_matches('/').to_owned()).collect(),
        }
    }

    pub fn needs_key(&self) -> bool {
        !self.keys.is_empty()
    }

    /// True if the server answers to the name in a `Host` header.
    pub fn is_host(&self, host: &str) -> bool {
        let Some(name) = host_name(host) else { return false };
        let name = name.to_ascii_lowercase();
        let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&name);
        address.parse::<IpAddr>().is_ok() || name == "localhost" || self.hosts.contains(&name)
    }

    /// What a page of `origin` may do, where the request came to `host`.
    pub fn origin(&self, origin: &str, host: &str) -> Origin {
        let origin = origin.to_ascii_lowercase();
        let own = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if own.is_some_and(|own| own.eq_ignore_ascii_case(host)) {
            return Origin::Own;
        }
        if self.origins.contains(&origin) { Origin::Allowed } else { Origin::Foreign }
    }

    /// True if the `Authorization` header holds one of the keys, or none is needed.
    pub fn is_key(&self, authorization: Option<&[u8]>) -> bool {
        if self.keys.is_empty() {
            return true;
        }
        let given = authorization.and_then(|value| match value.split_at_checked(7) {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"bearer ") => Some(key.trim_ascii()),
            _ => None,
        });
        let given = digest(given.unwrap_or_default());
        // All keys are compared in full, whichever is right.
        let found = self.keys.iter().fold(0u8, |found, key| {
            let differing = key.iter().zip(&given).fold(0u8, |bits, (a, b)| bits | (a ^ b));
            found | u8::from(std::hint::black_box(differing) == 0)
        });
        std::hint::black_box(found) != 0
    }
}

/// The name without the port; `None` if it is no host.
fn host_name(host: &str) -> Option<&str> {
    let is_port = |port: &str| port.parse::<u16>().is_ok() && port.bytes().all(|byte| byte.is_ascii_digit());
    if host.starts_with('[') {
        let end = host.find(']')? + 1;
        let (name, rest) = host.split_at(end);
        return (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port)).then_some(name);
    }
    match host.split_once(':') {
        Some((name, port)) => is_port(port).then_some(name),
        None => Some(host),
    }
    .filter(|name| !name.is_empty())
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> Access {
        Access::new(
            &["first".to_owned(), "second".to_owned()],
            &["Pi.local".to_owned()],
            &["https://Chat.example/".to_owned()],
        )
    }

    #[test]
    fn addresses_and_known_names_are_hosts() {
        for host in
            ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "[::1]", "192.168.1.7:80", "pi.LOCAL:8080"]
        {
            assert!(access().is_host(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "localhost:x",
            "localhost:",
            "127.0.0.1.evil.example",
            "[::1",
            "[::1]x",
            "a:1:2",
            ":80",
        ] {
            assert!(!access().is_host(host), "{host}");
        }
    }

    #[test]
    fn a_page_is_known_by_its_origin() {
        let of = |origin| access().origin(origin, "localhost:8080");
        assert_eq!(of("http://localhost:8080"), Origin::Own);
        assert_eq!(of("https://chat.example"), Origin::Allowed);
        for foreign in
            ["null", "http://localhost:8081", "http://evil.example", "https://chat.example.evil", "localhost:8080"]
        {
            assert_eq!(of(foreign), Origin::Foreign, "{foreign}");
        }
    }

    #[test]
    fn only_whole_keys_open() {
        let is_key = |header: &str| access().is_key(Some(header.as_bytes()));
        assert!(is_key("Bearer first") && is_key("bearer second") && is_key("Bearer  first "));
        for wrong in ["", "Bearer", "Bearer ", "Bearer firs", "Bearer firstt", "Basic first", "first", "Bearer First"] {
            assert!(!is_key(wrong), "{wrong}");
        }
        assert!(!access().is_key(None));
        assert!(Access::new(&[], &[], &[]).is_key(None));
    }
}
