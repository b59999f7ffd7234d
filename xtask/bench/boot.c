/*
 * The first program of the guest whose start is timed: says that it runs, and switches off.
 */
#include <sys/reboot.h>
#include <unistd.h>

int main(void)
{
    static const char line[] = "@bench up\n";
    if (write(STDOUT_FILENO, line, sizeof line - 1) < 0)
        return 1;
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}
