//! Labels of security modules.

use std::ffi::CString;

use oci_spec::runtime::{Process, Spec};

use super::{Host, Step, c_string, unsupported};
use crate::{Labels, Result};

pub(super) const NO_APPARMOR: &str = "AppArmor is not enabled on this host";
pub(super) const NO_SELINUX: &str = "SELinux is not enabled on this host";

/// The labels that the program gets when it is executed.
pub(super) fn labels(process: &Process, host: &Host<'_>) -> Result<Vec<Step>> {
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let mut steps = Vec::new();
    if let Some(profile) = filled(process.apparmor_profile()) {
        let field = "process.apparmorProfile";
        if host.apparmor {
            let value = c_string(format!("exec {profile}").as_bytes(), field)?;
            // The one for AppArmor alone is there since Linux 5.1.
            steps.push(Step::Label { field, file: c"self/attr/apparmor/exec".to_owned(), value });
        } else if profile != "unconfined" && host.labels == Labels::Required {
            return Err(unsupported(field, NO_APPARMOR));
        }
    }
    if let Some(label) = filled(process.selinux_label()) {
        let field = "process.selinuxLabel";
        if host.selinux {
            let value = c_string(label.as_bytes(), field)?;
            steps.push(Step::Label { field, file: c"self/attr/exec".to_owned(), value });
        } else if host.labels == Labels::Required {
            return Err(unsupported(field, NO_SELINUX));
        }
    }
    Ok(steps)
}

/// The context of the files of a filesystem that is made for the container.
pub(super) fn context(spec: &Spec, host: &Host<'_>, kind: &str) -> Result<Option<CString>> {
    let field = "linux.mountLabel";
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().as_deref()).unwrap_or_default();
    if label.is_empty() {
        return Ok(None);
    }
    if !host.selinux {
        return if host.labels == Labels::Required { Err(unsupported(field, NO_SELINUX)) } else { Ok(None) };
    }
    // The kernel's own filesystems have contexts of their own.
    let takes = matches!(kind, "tmpfs" | "devpts" | "ramfs" | "overlay");
    if takes { c_string(label.as_bytes(), field).map(Some) } else { Ok(None) }
}

/// The labels that nobody gives on this host.
pub(crate) fn label_warnings(spec: &Spec, apparmor: bool, selinux: bool) -> Vec<String> {
    let process = spec.process().as_ref();
    let filled = |text: Option<&String>| text.is_some_and(|text| !text.is_empty() && text != "unconfined");
    [
        ("process.apparmorProfile", process.and_then(|p| p.apparmor_profile().as_ref()), apparmor, NO_APPARMOR),
        ("process.selinuxLabel", process.and_then(|p| p.selinux_label().as_ref()), selinux, NO_SELINUX),
        ("linux.mountLabel", spec.linux().as_ref().and_then(|l| l.mount_label().as_ref()), selinux, NO_SELINUX),
    ]
    .into_iter()
    .filter(|(_, text, there, _)| filled(*text) && !there)
    .map(|(field, _, _, reason)| format!("{field} has no effect: {reason}"))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::host;
    use super::*;
    use crate::Error;

    fn process() -> Process {
        let mut process = Spec::default().process().clone().expect("a default");
        process.set_apparmor_profile(Some("docker-default".into())).set_selinux_label(Some("u:r:t:s0".into()));
        process
    }

    #[test]
    fn labels_are_for_the_program() {
        let mut host = host();
        (host.apparmor, host.selinux) = (true, true);
        let found: Vec<_> = labels(&process(), &host)
            .expect("labels")
            .into_iter()
            .map(|step| match step {
                Step::Label { file, value, .. } => (file, value),
                other => panic!("{other:?}"),
            })
            .collect();
        let wanted = [(c"self/attr/apparmor/exec", c"exec docker-default"), (c"self/attr/exec", c"u:r:t:s0")];
        assert_eq!(found, wanted.map(|(file, value)| (file.to_owned(), value.to_owned())));
    }

    #[test]
    fn without_the_module_they_are_refused() {
        for (apparmor, selinux, wanted) in
            [(false, true, "process.apparmorProfile"), (true, false, "process.selinuxLabel")]
        {
            let mut host = host();
            (host.apparmor, host.selinux) = (apparmor, selinux);
            match labels(&process(), &host) {
                Err(Error::UnsupportedField { field, .. }) => assert_eq!(field, wanted),
                other => panic!("{other:?}"),
            }
        }
        let mut lenient = host();
        lenient.labels = Labels::WherePossible;
        assert_eq!(labels(&process(), &lenient).expect("left out"), []);
        let mut unconfined = process();
        unconfined.set_apparmor_profile(Some("unconfined".into())).set_selinux_label(None);
        assert_eq!(labels(&unconfined, &host()).expect("nothing to do"), []);
    }

    #[test]
    fn filesystems_get_the_context() {
        let mut spec = Spec::default();
        if let Some(linux) = spec.linux_mut() {
            linux.set_mount_label(Some("u:o:t:s0:c1,c2".into()));
        }
        let mut host = host();
        assert!(context(&spec, &host, "tmpfs").is_err());
        host.labels = Labels::WherePossible;
        assert_eq!(context(&spec, &host, "tmpfs").expect("left out"), None);
        host.selinux = true;
        assert_eq!(context(&spec, &host, "tmpfs").expect("a context").as_deref(), Some(c"u:o:t:s0:c1,c2"));
        assert_eq!(context(&spec, &host, "proc").expect("none"), None);
    }
}
