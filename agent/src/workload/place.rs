//! Where a workload is to be: the namespace that a request names, checked, and what
//! keeps it there.

use std::path::PathBuf;

use super::hold;
use super::netns::Netns;
use crate::api::types::CreateWorkload;
use crate::cluster::Error;
use crate::model::Hold;

/// A namespace of this node and what holds it.
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) netns: Netns,
    pub(super) hold: Hold,
}

impl Place {
    /// The place that `request` names by a process or by a path.
    pub(super) fn of(request: &CreateWorkload) -> Result<Self, Error> {
        if request.mount && request.pid.is_none() {
            return Err(Error::Invalid("files are mounted for a process: name its pid".to_owned()));
        }
        match (request.pid, &request.netns) {
            (Some(pid), None) => Self::of_process(pid),
            (None, Some(path)) => {
                if !path.is_absolute() {
                    return Err(Error::Invalid(format!(
                        "{} is not an absolute path",
                        path.display()
                    )));
                }
                let netns = Netns::open(path)?;
                let hold = Hold::Path { inode: netns.inode };
                Ok(Self { path: path.clone(), netns, hold })
            }
            _ => Err(Error::Invalid("a workload has either a pid or a netns".to_owned())),
        }
    }

    fn of_process(pid: i32) -> Result<Self, Error> {
        let none = || Error::Invalid(format!("there is no process {pid}"));
        let start = hold::start_time(pid).ok_or_else(none)?;
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let netns = Netns::open(&path)?;
        // Else the pid was another's by the time its namespace was opened.
        if hold::start_time(pid) != Some(start) {
            return Err(none());
        }
        Ok(Self { path, netns, hold: Hold::Process { pid, start } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(pid: Option<i32>, netns: Option<&str>) -> CreateWorkload {
        let netns = netns.map(PathBuf::from);
        CreateWorkload {
            name: None,
            pid,
            netns,
            mount: false,
            networks: Vec::new(),
            serve: None,
            health_check: None,
        }
    }

    fn refusal(request: &CreateWorkload) -> String {
        Place::of(request).map(|place| place.path).unwrap_err().to_string()
    }

    #[test]
    fn a_place_is_one_process_or_one_path() {
        assert!(refusal(&request(None, None)).contains("either"));
        assert!(refusal(&request(Some(1), Some("/run/netns/x"))).contains("either"));
        assert!(refusal(&request(None, Some("run/netns/x"))).contains("absolute"));
        for pid in [0, -1, i32::MAX] {
            assert!(refusal(&request(Some(pid), None)).contains("no process"), "{pid}");
        }
        let mounted = CreateWorkload { mount: true, ..request(None, Some("/run/netns/x")) };
        assert!(refusal(&mounted).contains("name its pid"));
    }

    #[test]
    fn the_agents_own_namespace_is_refused() {
        let own = std::process::id().cast_signed();
        assert!(refusal(&request(Some(own), None)).contains("the host's own network"));
    }
}
