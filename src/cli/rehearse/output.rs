//! What the rehearsed tools do and print on the way to each callback: few tasks and lines, but
//! of every look there is.

/// Something a tool does: a task, where it is one, and what it prints.
pub struct Act {
    /// The task that begins.
    pub task: Option<&'static str>,
    /// What is printed.
    pub lines: &'static [&'static str],
}

/// The play that the tasks belong to.
pub const PLAY: &str = "Configure the agent";

const fn prints(lines: &'static [&'static str]) -> Act {
    Act { task: None, lines }
}

const fn does(task: &'static str, lines: &'static [&'static str]) -> Act {
    Act { task: Some(task), lines }
}

/// What is done before a callback.
pub fn before(scene: &str) -> &'static [Act] {
    match scene {
        "vm_created" => CREATE,
        "network_configured" => NETWORK,
        "ansible_started" => INSTALL,
        "ansible_complete" => CONFIGURE,
        "running" => FINISH,
        _ => &[],
    }
}

const CREATE: &[Act] = &[
    prints(&[
        "\u{1b}[1mCreating a server\u{1b}[0m cpx11, ubuntu-24.04, nbg1",
        "  name    \u{1b}[36mmp-rehearsal\u{1b}[0m",
        "  labels  managed-by=milepost",
    ]),
    prints(&[
        "waiting for action 52103377: \u{1b}[33mrunning\u{1b}[0m 40 %",
        "waiting for action 52103377: \u{1b}[32msuccess\u{1b}[0m 100 %",
    ]),
];

const NETWORK: &[Act] = &[prints(&[
    "cloud-init: the clock is synchronised",
    "tailscale: \u{1b}[32mup\u{1b}[0m as 100.64.0.7",
])];

const INSTALL: &[Act] = &[
    prints(&[
        "Collecting ansible-core\u{1b}[2m>=2.16\u{1b}[0m",
        "Successfully installed ansible-core",
    ]),
    prints(&["inventory: 1 host in group \u{1b}[1mremote\u{1b}[0m"]),
];

const CONFIGURE: &[Act] = &[
    does(
        "Gathering Facts",
        &[
            "",
            "PLAY [Configure the agent] *****************************************************",
            "",
            "TASK [Gathering Facts] *********************************************************",
            "\u{1b}[0;32mok: [agent]\u{1b}[0m",
        ],
    ),
    does(
        "base : install the packages",
        &[
            "",
            "TASK [base : install the packages] *********************************************",
            "\u{1b}[0;33mchanged: [agent] => (item=git)\u{1b}[0m",
            "\u{1b}[0;33mchanged: [agent] => (item=ufw)\u{1b}[0m",
            "\u{1b}[0;32mok: [agent] => (item=curl)\u{1b}[0m",
        ],
    ),
    does(
        "docker : add the repository",
        &[
            "",
            "TASK [docker : add the repository] *********************************************",
            "\u{1b}[1;35m[WARNING]: \u{1b}[0m\u{1b}[0;35mthe key was fetched over a slow link\u{1b}[0m",
            "\u{1b}[0;33mchanged: [agent]\u{1b}[0m",
        ],
    ),
    does(
        "docker : start the service",
        &[
            "",
            "TASK [docker : start the service] **********************************************",
            "\u{1b}[0;33mchanged: [agent]\u{1b}[0m",
        ],
    ),
    does(
        "agent : write the settings",
        &[
            "",
            "TASK [agent : write the settings] **********************************************",
            "\u{1b}[0;36mskipping: [agent]\u{1b}[0m",
        ],
    ),
    does(
        "agent : wait for the agent to answer",
        &[
            "",
            "TASK [agent : wait for the agent to answer] ************************************",
            "\u{1b}[1;30mFAILED - RETRYING: [agent]: wait for the agent to answer (5 retries left).\u{1b}[0m",
            "\u{1b}[0;32mok: [agent]\u{1b}[0m",
        ],
    ),
];

const FINISH: &[Act] = &[prints(&[
    "",
    "PLAY RECAP *********************************************************************",
    "\u{1b}[0;33magent\u{1b}[0m : \u{1b}[0;32mok=6   \u{1b}[0m \u{1b}[0;33mchanged=4   \u{1b}[0m \
     unreachable=0    failed=0    \u{1b}[0;36mskipped=1   \u{1b}[0m rescued=0",
    "\u{1b}[48;5;22m\u{1b}[38;5;231m the agent runs \u{1b}[0m \u{1b}[38;2;255;140;0mrehearsed\u{1b}[0m",
])];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_kept_as_it_is_printed() {
        for scene in super::super::SCENES {
            for act in before(scene.name) {
                for line in act.lines {
                    assert_eq!(crate::intake::lines::clean(line), *line);
                }
            }
        }
    }
}
