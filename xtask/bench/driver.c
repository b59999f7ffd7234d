/*
 * Runs the workloads of a plan, one after the other, and says how long each took.
 *
 * In a guest this is the first program (rdinit=/bench/driver): it loads the drivers of the virtio
 * disks, mounts the image and the disk with the workloads' files, both for reading only, and goes
 * into the image. There is no other process, no service and no timer, so that two virtual machines
 * differ in nothing but themselves.
 *
 * Natively it does the same in namespaces of its own:
 *     unshare --mount --pid --fork driver native ROOT FILES PLAN
 * where ROOT is a directory with the image's files and FILES one with the workloads' files.
 *
 * A line of a plan has five fields with tabs between them: the workload's name, its limit in
 * seconds, and three shell commands, which prepare (not measured), work (measured) and check (not
 * measured). The last two fields of what the work prints may say "seconds X" or "rate X", if it
 * measures itself; what the check prints must be the same everywhere.
 *
 * What this program says goes to the console, a line each:
 *     @bench ready
 *     @bench prepare NAME
 *     @bench begin NAME
 *     @bench end NAME ok|STATUS SECONDS PROCESSOR seconds|rate|- VALUE
 *     @bench check NAME ok|STATUS TEXT
 *     @bench said NAME TEXT         what a workload that failed printed last
 *     @bench over NAME
 *     @bench done
 * PROCESSOR are the seconds of processor time that it took; "-" in a guest, which cannot know.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FIELDS = 5, LINE = 4096, OUTPUT = 65536 };

static const char OUTPUT_FILE[] = "/tmp/.output";

static int is_guest;

static void say(const char *format, ...)
{
    char line[LINE];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    /* One write for a line: the kernel's messages come between lines only. */
    for (int done = 0; done < length;) {
        ssize_t count = write(STDOUT_FILENO, line + done, length - done);
        if (count <= 0)
            _exit(1);
        done += count;
    }
}

static void finish(void)
{
    if (is_guest) {
        sync();
        reboot(RB_POWER_OFF);
        for (;;)
            pause();
    }
    exit(0);
}

static void fail(const char *what)
{
    say("@bench broken %s: %s", what, strerror(errno));
    finish();
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

/* The processor time of all children that ended. */
static double processor_time(void)
{
    struct rusage usage;
    getrusage(RUSAGE_CHILDREN, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
           (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static void mount_at(const char *source, const char *target, const char *type, unsigned long flags,
                     const char *options)
{
    if (mount(source, target, type, flags, options) != 0)
        fail(target);
}

static int ended(pid_t child)
{
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            fail("waitpid");
    return status;
}

/* Loads the drivers of the disks from Debian's initial RAM disk and waits for both. */
static void find_disks(void)
{
    pid_t child = fork();
    if (child == 0) {
        execl("/sbin/modprobe", "modprobe", "-a", "virtio_pci", "virtio_blk", (char *)NULL);
        _exit(127);
    }
    if (child < 0 || ended(child) != 0)
        fail("modprobe");
    static const char *const disks[] = {"/dev/vda", "/dev/vdb"};
    for (int i = 0; i < 2; i++) {
        double deadline = now() + 60;
        while (access(disks[i], F_OK) != 0) {
            if (now() > deadline)
                fail(disks[i]);
            usleep(10000);
        }
    }
}

/* Makes of the image's files at `root` a system to work in, and enters it. */
static void enter(const char *root, const char *files)
{
    if (chdir(root) != 0)
        fail(root);
    if (is_guest) {
        mount_at("none", "dev", "devtmpfs", 0, NULL);
        mkdir("dev/shm", 01777);
        mount_at("none", "dev/shm", "tmpfs", 0, "mode=1777");
        mount_at("/dev/vdb", "mnt", "ext4", MS_RDONLY | MS_NOATIME, "noload");
    } else {
        mount_at("/dev", "dev", NULL, MS_BIND | MS_REC, NULL);
        mount_at(files, "mnt", NULL, MS_BIND, NULL);
    }
    mount_at("none", "proc", "proc", 0, NULL);
    if (is_guest)
        mount_at("none", "sys", "sysfs", 0, NULL);
    else
        mount_at("/sys", "sys", NULL, MS_BIND | MS_REC, NULL);
    mount_at("none", "run", "tmpfs", 0, "mode=755");
    if (chroot(".") != 0)
        fail("chroot");
    clearenv();
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    setenv("HOME", "/tmp", 1);
    setenv("LC_ALL", "C", 1);
}

/* Ends and forgets all other processes of this machine or namespace. */
static void end_others(void)
{
    kill(-1, SIGKILL);
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
        ;
}

/* Runs a command for at most `limit` seconds; returns the time that it took. */
static double run(const char *command, double limit, char *status, size_t size)
{
    double begun = now();
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        int input = open("/dev/null", O_RDONLY);
        int output = open(OUTPUT_FILE, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
        if (input < 0 || output < 0 || dup2(input, 0) < 0 || dup2(output, 1) < 0 ||
            dup2(output, 2) < 0)
            _exit(126);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    sigset_t children;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    int result;
    for (;;) {
        pid_t found = waitpid(child, &result, WNOHANG);
        if (found == child)
            break;
        double left = begun + limit - now();
        if (left <= 0) {
            end_others();
            snprintf(status, size, "timeout");
            return now() - begun;
        }
        struct timespec rest = {(time_t)left, (long)((left - (time_t)left) * 1e9)};
        sigtimedwait(&children, NULL, &rest);
    }
    double taken = now() - begun;
    if (WIFEXITED(result) && WEXITSTATUS(result) == 0)
        snprintf(status, size, "ok");
    else if (WIFEXITED(result))
        snprintf(status, size, "exit:%d", WEXITSTATUS(result));
    else
        snprintf(status, size, "signal:%d", WTERMSIG(result));
    end_others();
    return taken;
}

/* The end of what the last command printed, without control characters. */
static void read_output(char *text, size_t size)
{
    text[0] = 0;
    int file = open(OUTPUT_FILE, O_RDONLY);
    if (file < 0)
        return;
    off_t length = lseek(file, 0, SEEK_END);
    off_t skip = length > (off_t)size - 1 ? length - (off_t)size + 1 : 0;
    ssize_t count = pread(file, text, size - 1, skip);
    close(file);
    text[count > 0 ? count : 0] = 0;
    for (char *p = text; *p; p++)
        if ((unsigned char)*p < ' ' && *p != '\n')
            *p = ' ';
}

static void say_last_lines(const char *name, char *text)
{
    enum { MOST = 6 };
    char *lines[MOST];
    int count = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        lines[count++ % MOST] = line;
    for (int i = count > MOST ? count - MOST : 0; i < count; i++)
        say("@bench said %s %.200s", name, lines[i % MOST]);
}

/* What the work measured itself: its last line, "seconds X" or "rate X". */
static void own_measure(const char *text, char *kind, char *value)
{
    const char *end = text + strlen(text);
    while (end > text && end[-1] == '\n')
        end--;
    const char *line = end;
    while (line > text && line[-1] != '\n')
        line--;
    if (sscanf(line, "%15[a-z] %31[0-9.eE+-]", kind, value) != 2 ||
        (strcmp(kind, "seconds") != 0 && strcmp(kind, "rate") != 0)) {
        strcpy(kind, "-");
        strcpy(value, "-");
    }
}

static void work(char *fields[FIELDS])
{
    static char output[OUTPUT];
    const char *name = fields[0];
    double limit = atof(fields[1]);
    char status[32], kind[16] = "-", value[32] = "-";

    mount_at("none", "/tmp", "tmpfs", 0, "mode=1777");
    if (chdir("/tmp") != 0)
        fail("/tmp");
    double taken = 0;
    say("@bench prepare %s", name);
    if (*fields[2])
        taken = run(fields[2], limit, status, sizeof status);
    if (*fields[2] && strcmp(status, "ok") != 0) {
        say("@bench begin %s", name);
        say("@bench end %s prepare:%s %.6f - - -", name, status, taken);
    } else {
        say("@bench begin %s", name);
        double used = processor_time();
        taken = run(fields[3], limit, status, sizeof status);
        char processor[32] = "-";
        if (!is_guest)
            snprintf(processor, sizeof processor, "%.6f", processor_time() - used);
        read_output(output, sizeof output);
        own_measure(output, kind, value);
        say("@bench end %s %s %.6f %s %s %s", name, status, taken, processor, kind, value);
    }
    if (strcmp(status, "ok") == 0 && *fields[4]) {
        run(fields[4], limit, status, sizeof status);
        read_output(output, sizeof output);
        output[strcspn(output, "\n")] = 0;
        say("@bench check %s %s %.200s", name, status, output);
    }
    if (strcmp(status, "ok") != 0) {
        read_output(output, sizeof output);
        say_last_lines(name, output);
    }
    say("@bench over %s", name);
    if (chdir("/") != 0 || umount2("/tmp", MNT_DETACH) != 0)
        fail("/tmp");
}

int main(int argc, char **argv)
{
    is_guest = argc < 2 || strcmp(argv[1], "native") != 0;
    if (getpid() != 1 || (!is_guest && argc != 5)) {
        fprintf(stderr, "usage: unshare --mount --pid --fork driver native ROOT FILES PLAN\n");
        return 2;
    }
    sigset_t children;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &children, NULL);

    FILE *plan = fopen(is_guest ? "/bench/plan" : argv[4], "re");
    if (!plan)
        fail("plan");
    if (is_guest) {
        mkdir("/dev", 0755);
        mkdir("/root", 0755);
        mkdir("/proc", 0755);
        mount_at("none", "/proc", "proc", 0, NULL);
        mount_at("none", "/dev", "devtmpfs", 0, NULL);
        find_disks();
        mount_at("/dev/vda", "/root", "ext4", MS_RDONLY | MS_NOATIME, "noload");
    }
    enter(is_guest ? "/root" : argv[2], is_guest ? NULL : argv[3]);
    say("@bench ready");

    static char line[LINE];
    while (fgets(line, sizeof line, plan)) {
        line[strcspn(line, "\n")] = 0;
        char *rest = line, *fields[FIELDS];
        for (int i = 0; i < FIELDS; i++) {
            fields[i] = strsep(&rest, "\t");
            if (!fields[i]) {
                errno = EINVAL;
                fail("a line of the plan");
            }
        }
        work(fields);
    }
    say("@bench done");
    finish();
}
