/* Does to files in a directory what programs do to files, and says what is not as it should be. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

static int failures;

#define CHECK(what) \
    do { \
        errno = 0; \
        if (!(what)) { \
            printf("line %d: %s: %s\n", __LINE__, #what, strerror(errno)); \
            failures++; \
        } \
    } while (0)

static int is(int fd, off_t at, const char *text)
{
    char bytes[64];
    ssize_t len = pread(fd, bytes, sizeof bytes, at);
    return len == (ssize_t)strlen(text) && !memcmp(bytes, text, len);
}

static void nameless_files(void)
{
    struct stat st;
    int fd = open("nameless", O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0 && write(fd, "here", 4) == 4);
    CHECK(unlink("nameless") == 0 && access("nameless", F_OK) < 0);
    CHECK(fstat(fd, &st) == 0 && st.st_nlink == 0 && st.st_size == 4);
    CHECK(is(fd, 0, "here"));
    close(fd);
}

static void renames(void)
{
    int old = open("old", O_RDWR | O_CREAT, 0600), new = open("new", O_RDWR | O_CREAT, 0600);
    CHECK(write(old, "old", 3) == 3 && write(new, "new", 3) == 3);
    CHECK(rename("new", "old") == 0);
    CHECK(is(old, 0, "old") && is(new, 0, "new"));
    close(new);
    new = open("old", O_RDONLY);
    CHECK(is(new, 0, "new"));
    CHECK(renameat2(AT_FDCWD, "old", AT_FDCWD, "old2", RENAME_NOREPLACE) == 0);
    CHECK(mkdir("d", 0700) == 0 && rename("old2", "d/old2") == 0 && rename("d", "e") == 0);
    CHECK(is(new, 0, "new") && access("e/old2", F_OK) == 0);
    CHECK(rename("e", "e/f") < 0 && errno == EINVAL);
    CHECK(unlink("e/old2") == 0 && rmdir("e") == 0);
    close(old);
    close(new);
}

static void mappings(void)
{
    int fd = open("mapped", O_RDWR | O_CREAT, 0600), other = open("mapped", O_RDONLY);
    CHECK(ftruncate(fd, 3 * 4096) == 0);
    char *bytes = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(bytes != MAP_FAILED);
    memcpy(bytes + 4094, "across", 6);
    CHECK(msync(bytes, 3 * 4096, MS_SYNC) == 0);
    char seen[6];
    CHECK(pread(other, seen, 6, 4094) == 6 && !memcmp(seen, "across", 6));
    CHECK(pwrite(fd, "ACROSS", 6, 4094) == 6 && !memcmp(bytes + 4094, "ACROSS", 6));
    munmap(bytes, 3 * 4096);
    close(fd);
    close(other);
}

static void appends(void)
{
    int a = open("log", O_WRONLY | O_APPEND | O_CREAT, 0600), b = open("log", O_WRONLY | O_APPEND);
    for (int n = 0; n < 50; n++)
        CHECK(write(a, "a\n", 2) == 2 && write(b, "b\n", 2) == 2);
    struct stat st;
    CHECK(stat("log", &st) == 0 && st.st_size == 200);
    close(a);
    close(b);
}

static void locks(void)
{
    int a = open("lock", O_RDWR | O_CREAT, 0600), b = open("lock", O_RDWR);
    CHECK(flock(a, LOCK_EX) == 0 && flock(b, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK);
    CHECK(flock(a, LOCK_UN) == 0 && flock(b, LOCK_EX | LOCK_NB) == 0);
    struct flock all = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    CHECK(fcntl(a, F_OFD_SETLK, &all) == 0);
    CHECK(fcntl(b, F_OFD_SETLK, &all) < 0 && errno == EAGAIN);
    close(a);
    close(b);
}

static void attributes(void)
{
    struct stat st;
    int fd = open("attributes", O_RDWR | O_CREAT, 0666);
    umask(022);
    CHECK(fchmod(fd, 0) == 0 && fchmod(fd, 0640) == 0 && fstat(fd, &st) == 0);
    CHECK((st.st_mode & 07777) == 0640 && st.st_uid == 0 && st.st_gid == 0);
    CHECK(fchmod(fd, 04755) < 0 && errno == EPERM);
    CHECK(fchown(fd, 1, 1) < 0 && errno == EPERM);
    CHECK(fchown(fd, 0, 0) == 0);
    struct timespec times[2] = { { 1000, 7 }, { 2000, 8 } };
    CHECK(futimens(fd, times) == 0 && fstat(fd, &st) == 0 && st.st_mtim.tv_sec == 2000);
    CHECK(st.st_mtim.tv_nsec == 8);
    if (fsetxattr(fd, "user.note", "text", 4, 0) == 0) {
        char value[8];
        CHECK(fgetxattr(fd, "user.note", value, sizeof value) == 4 && !memcmp(value, "text", 4));
    } else {
        CHECK(errno == EOPNOTSUPP);
    }
    CHECK(ftruncate(fd, 1 << 20) == 0 && fallocate(fd, 0, 0, 2 << 20) == 0);
    CHECK(fsync(fd) == 0 && fstat(fd, &st) == 0 && st.st_size == 2 << 20);
    CHECK(link("attributes", "second") == 0 && stat("second", &st) == 0 && st.st_nlink == 2);
    CHECK(mknod("device", S_IFCHR | 0600, makedev(1, 3)) < 0 && errno == EPERM);
    CHECK(mkfifo("pipe", 0600) == 0 && unlink("pipe") == 0);
    close(fd);
}

/* Removes what it has read, as rm -r does. */
static void many_files(void)
{
    char name[32];
    int made = 0, found = 0;
    CHECK(mkdir("many", 0755) == 0);
    for (int n = 0; n < 3000; n++) {
        snprintf(name, sizeof name, "many/file-%d", n);
        int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0644);
        made += fd >= 0 && write(fd, name, strlen(name)) == (ssize_t)strlen(name);
        close(fd);
    }
    CHECK(made == 3000);
    DIR *dir = opendir("many");
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        if (entry->d_name[0] != '.')
            found += unlinkat(dirfd(dir), entry->d_name, 0) == 0;
    }
    closedir(dir);
    CHECK(found == 3000 && rmdir("many") == 0);
}

int main(int argc, char **argv)
{
    if (argc != 2 || chdir(argv[1]) < 0)
        return 2;
    nameless_files();
    renames();
    mappings();
    appends();
    locks();
    attributes();
    many_files();
    puts(failures ? "FAILED" : "all is well");
    return failures != 0;
}
