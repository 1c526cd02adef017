/* What sends bytes to a container and gets them back, and its other end.
 *
 *   peer serve PORT         the other end of TCP connections, in the container
 *   peer tcp HOST PORT      sends to it, and takes from it, each between two marks
 *   peer stdio COMMAND...   the same by the standard input and output of a command that gives back what it gets
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <spawn.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "marks.h"

#define ROUND_TRIPS 500
#define MIB 32
#define PIECE (128 << 10)
#define TRIES 500

extern char **environ;

/* What is asked of the other end: to give back this many bytes one by one, to take or to send this many MiB. */
enum { ECHO = 'e', TAKE = 't', SEND = 's' };
struct request { uint32_t what, count; };

static char buffer[PIECE];

static void put(int to, const void *bytes, size_t size)
{
	for (ssize_t n; size; bytes = (const char *)bytes + n, size -= n)
		if ((n = write(to, bytes, size)) <= 0)
			err(1, "write");
}

/* False where there is an end instead. */
static int get(int from, void *bytes, size_t size)
{
	for (ssize_t n; size; bytes = (char *)bytes + n, size -= n)
		if ((n = read(from, bytes, size)) < 0)
			err(1, "read");
		else if (n == 0)
			return 0;
	return 1;
}

static void put_mib(int to, unsigned count)
{
	for (unsigned i = 0; i < count * ((1 << 20) / PIECE); i++)
		put(to, buffer, PIECE);
}

static void get_mib(int from, unsigned count)
{
	for (size_t left = (size_t)count << 20; left;) {
		ssize_t n = read(from, buffer, left < PIECE ? left : PIECE);
		if (n <= 0)
			err(1, "read");
		left -= n;
	}
}

static void trip(int to, int from)
{
	put(to, buffer, 1);
	if (!get(from, buffer, 1))
		errx(1, "the other end is gone");
}

static void no_delay(int socket)
{
	int on = 1;
	if (setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
		err(1, "TCP_NODELAY");
}

static struct sockaddr_in address(const char *host, const char *port)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
	if (inet_pton(AF_INET, host, &at.sin_addr) != 1)
		errx(2, "%s: no address", host);
	return at;
}

static void answer(int connection)
{
	struct request request;
	while (get(connection, &request, sizeof request)) {
		if (request.what == TAKE) {
			get_mib(connection, request.count);
			put(connection, buffer, 1);
		} else if (request.what == SEND) {
			put_mib(connection, request.count);
		} else {
			for (unsigned i = 0; i < request.count && get(connection, buffer, 1); i++)
				put(connection, buffer, 1);
		}
	}
}

static void serve(const char *port)
{
	struct sockaddr_in at = address("0.0.0.0", port);
	int listening = socket(AF_INET, SOCK_STREAM, 0);
	if (listening < 0 || bind(listening, (void *)&at, sizeof at) < 0 || listen(listening, 1) < 0)
		err(1, "port %s", port);
	for (;;) {
		int connection = accept(listening, NULL, NULL);
		if (connection < 0)
			err(1, "accept");
		no_delay(connection);
		answer(connection);
		close(connection);
	}
}

/* The container's program may not listen yet. */
static int connected(const char *host, const char *port)
{
	struct sockaddr_in at = address(host, port);
	for (int i = 0; i < TRIES; i++) {
		int made = socket(AF_INET, SOCK_STREAM, 0);
		if (made >= 0 && connect(made, (void *)&at, sizeof at) == 0)
			return made;
		if (made < 0 || (errno != ECONNREFUSED && errno != EHOSTUNREACH))
			break;
		close(made);
		usleep(20000);
	}
	err(1, "%s", host);
}

static void request(int to, uint32_t what, uint32_t count)
{
	struct request request = {what, count};
	put(to, &request, sizeof request);
}

static void trips(int to, int from, const char *name)
{
	for (int i = 0; i < ROUND_TRIPS; i++)
		trip(to, from);
	begin_work(name, ROUND_TRIPS);
	for (int i = 0; i < ROUND_TRIPS; i++)
		trip(to, from);
	end_work();
}

static void tcp(const char *host, const char *port)
{
	int other = connected(host, port);
	no_delay(other);
	request(other, ECHO, 2 * ROUND_TRIPS);
	trips(other, other, "TCP, a byte there and back");
	for (int warm = 0; warm < 2; warm++) {
		request(other, TAKE, MIB);
		if (warm)
			begin_work("TCP to the container, per MiB", MIB);
		put_mib(other, MIB);
		if (!get(other, buffer, 1))
			errx(1, "the other end is gone");
		if (warm)
			end_work();
	}
	for (int warm = 0; warm < 2; warm++) {
		if (warm)
			begin_work("TCP from the container, per MiB", MIB);
		request(other, SEND, MIB);
		get_mib(other, MIB);
		if (warm)
			end_work();
	}
}

static void stdio(char **command)
{
	int there[2], back[2], status;
	pid_t pid;
	posix_spawn_file_actions_t actions;
	if (pipe(there) < 0 || pipe(back) < 0)
		err(1, "pipe");
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, there[0], 0);
	posix_spawn_file_actions_adddup2(&actions, back[1], 1);
	for (int i = 0; i < 2; i++) {
		posix_spawn_file_actions_addclose(&actions, there[i]);
		posix_spawn_file_actions_addclose(&actions, back[i]);
	}
	if (posix_spawn(&pid, command[0], &actions, NULL, command, environ) != 0)
		errx(1, "%s", command[0]);
	close(there[0]);
	close(back[1]);
	trips(there[1], back[0], "a byte there and back by exec's stdin and stdout");
	close(there[1]);
	if (waitpid(pid, &status, 0) != pid || status != 0)
		errx(1, "%s: %x", command[0], status);
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "serve") == 0)
		serve(argv[2]);
	else if (argc == 4 && strcmp(argv[1], "tcp") == 0)
		tcp(argv[2], argv[3]);
	else if (argc > 2 && strcmp(argv[1], "stdio") == 0)
		stdio(argv + 2);
	else
		errx(2, "peer serve PORT | tcp HOST PORT | stdio COMMAND...");
	print_marks();
	return 0;
}
